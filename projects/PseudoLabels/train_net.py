"""Train a segmentation model of Detectron2 on FreeCP's labels, and show it beside its teacher.

    cd projects/PseudoLabels
    python train_net.py --config-file configs/scenes.yaml PSEUDO_LABELS.LABELS labels/sem_seg.json

The options are Detectron2's own, --num-gpus, --resume, --eval-only, KEY VALUE, and --register. A
config stands on Detectron2's Base-RCNN-FPN.yaml.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from freecp import openmp_settings

os.environ.update(openmp_settings())

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, hooks, launch
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from pseudo_labels import (
    PseudoLabelMapper,
    check_labels,
    load_student_config,
    teacher_metrics,
)

from freecp_d2.cli.register import add_register_option, register_files
from freecp_d2.errors import add_debug_option, one_sentence
from freecp_d2.evaluation import FreeCPSemSegEvaluator, SemSegEvalHook
from freecp_d2.files import require_writable
from freecp_d2.labelling import register_labels

LABELS = "pseudo_labels"
"""What PSEUDO_LABELS.LABELS are called in Detectron2's catalogs."""


class Trainer(DefaultTrainer):
    """Detectron2's trainer on FreeCP's labels; figures are student/sem_seg/* and teacher/*."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        """Images with their labels."""
        return build_detection_train_loader(cfg, mapper=PseudoLabelMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        """Images of `dataset_name`."""
        return build_detection_test_loader(cfg, dataset_name, mapper=PseudoLabelMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> FreeCPSemSegEvaluator:
        """Writes results.json, and a report with the teacher beside the student."""
        return FreeCPSemSegEvaluator(
            dataset_name,
            output_dir=os.path.join(cfg.OUTPUT_DIR, "evaluation"),
            facts={"method": "student"},
            compare_with=cfg.PSEUDO_LABELS.TEACHER_RESULTS or None,
        )

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's, which evaluate by SemSegEvalHook and repeat the teacher's figures."""
        cfg, (test,) = self.cfg, self.cfg.DATASETS.TEST
        period = cfg.TEST.EVAL_PERIOD
        evaluator = self.build_evaluator(cfg, test)
        loader = self.build_test_loader(cfg, test)
        student = SemSegEvalHook(period, self.model, loader, evaluator, prefix="student")
        figures = {"teacher/sem_seg": teacher_metrics(cfg)}
        built = []
        for hook in super().build_hooks():
            if type(hook) is hooks.EvalHook:
                built += [student, hooks.EvalHook(period, lambda: figures)]
            else:
                built.append(hook)
        return built

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, without TensorBoard's where that is not installed."""
        writers = super().build_writers()
        if find_spec("tensorboard") is None:
            writers = [w for w in writers if not isinstance(w, TensorboardXWriter)]
        return writers


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of the command line, with logging set up."""
    cfg = load_student_config(args.config_file, args.opts)
    if args.eval_only:
        cfg.PSEUDO_LABELS.RELATION_WEIGHT = 0.0  # it needs the labels' classes
    cfg.freeze()
    require_writable(Path(cfg.OUTPUT_DIR))
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="freecp_d2")
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Train, or evaluate with --eval-only."""
    register_files(args.register)
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    if comm.get_world_size() > 1 and cfg.MODEL.DEVICE == "cpu":
        raise ValueError(
            "Detectron2's DefaultTrainer trains with several ranks on GPUs only; leave out "
            "--num-gpus, and torch takes all cores"
        )
    if not cfg.PSEUDO_LABELS.LABELS:
        raise ValueError(
            "PSEUDO_LABELS.LABELS is empty; set it to the sem_seg.json that `freecp label` wrote"
        )
    register_labels(LABELS, cfg.PSEUDO_LABELS.LABELS)
    check_labels(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    figures = trainer.storage.latest()
    if comm.is_main_process():
        print(f"mIoU on {cfg.DATASETS.TEST[0]}, percent")
        for name in ("teacher", "student"):
            if f"{name}/sem_seg/mIoU" in figures:
                print(f"  {name}  {figures[f'{name}/sem_seg/mIoU'][0]:.2f}")
    return figures


def run(args: argparse.Namespace) -> None:
    """What each rank runs: :func:`main`, and one line where the input is wrong."""
    with one_sentence("train_net.py", args.debug):
        main(args)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Detectron2's options."""
    parser = default_argument_parser(epilog=__doc__)
    add_register_option(parser)
    add_debug_option(parser)
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args(argv)
    if not args.config_file:
        parser.error("name a config: --config-file projects/PseudoLabels/configs/scenes.yaml")
    return args


def launch_ranks(args: argparse.Namespace) -> None:
    """:func:`run` by Detectron2's `launch`."""
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(str(error) if error.signal_name else 1)  # otherwise the rank has said why


if __name__ == "__main__":
    launch_ranks(parse_args())
