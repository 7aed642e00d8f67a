"""Evaluate FreeCP, or a base method alone, on data sets of Detectron2's catalogs.

    freecp evaluate --config-file scenes/clearclip

The options are Detectron2's own, --register, --coco-predictions and --compare-with. Results lie in
OUTPUT_DIR, or in OUTPUT_DIR/<data set> where several are evaluated. There is no training: FreeCP
has no parameters of its own, and CLIP (MODEL.CLIP.PRETRAINED) stays frozen.
"""

import argparse
import logging
import os
import runpy
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import inference_on_dataset, print_csv_format, verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import config_path, load_config
from ..data.mapper import InferenceMapper
from ..distributed import job_token, require_one_job
from ..evaluation import FreeCPSemSegEvaluator
from ..evaluation.facts import facts_of
from ..evaluation.sem_seg import require_registered
from ..evaluation.table import markdown_table
from ..files import require_writable
from ..progress import progress


class Trainer(DefaultTrainer):
    """Detectron2's trainer, of which only the evaluation is used."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        """Images of `dataset_name`, read and resized by `InferenceMapper`."""
        return build_detection_test_loader(cfg, dataset_name, mapper=InferenceMapper(cfg))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, **options: Any
    ) -> FreeCPSemSegEvaluator:
        """Writes its results to OUTPUT_DIR, or to a folder in it where there are several data sets.

        Raises:
            ValueError: `dataset_name` is not registered for semantic segmentation.
        """
        require_registered(dataset_name)
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type != "sem_seg":
            raise ValueError(
                f"{dataset_name}: evaluator_type is {evaluator_type!r}; only data sets registered "
                "with 'sem_seg' can be evaluated"
            )
        folder = os.path.join(cfg.OUTPUT_DIR, dataset_name if len(cfg.DATASETS.TEST) > 1 else "")
        return FreeCPSemSegEvaluator(dataset_name, output_dir=folder, **options)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of the command line, with logging set up."""
    args.config_file = str(config_path(args.config_file))  # Detectron2 opens it for the log
    cfg = load_config(args.config_file, [*args.opts, "MODEL.FREECP.OUTPUT", "label_map"])
    require_writable(Path(cfg.OUTPUT_DIR))
    _keep_in_the_file(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="freecp_d2")
    return cfg


def evaluate(args: argparse.Namespace) -> dict:
    """Evaluate on every data set of DATASETS.TEST.

    Raises:
        ValueError: DATASETS.TEST is empty, or a file of --register wants a package that is not
            there.
    """
    for file in args.register:
        try:
            runpy.run_path(file)
        except ModuleNotFoundError as error:
            raise ValueError(f"--register {file}: {error}") from error
    cfg = setup(args)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; name the data sets to evaluate")
    model: Any
    # First, since they see what is wrong with the data, and loading CLIP takes longer.
    options = {
        "stage_seconds": lambda: model.timings,
        "coco_predictions": args.coco_predictions,
        "compare_with": args.compare_with,
    }
    if cfg.MODEL.FREECP.ENABLED:
        mapper = InferenceMapper(cfg)
        options["segment_base"] = lambda image: segment_base(model, mapper(image))
    evaluators = [Trainer.build_evaluator(cfg, name, **options) for name in cfg.DATASETS.TEST]
    model = Trainer.build_model(cfg)
    if not hasattr(model, "vocabulary"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no vocabulary; choose "
            "FreeCP"
        )
    facts = facts_of(cfg, model)
    for evaluator in evaluators:
        evaluator.check_vocabulary(model.vocabulary)
        evaluator.facts.update(facts)
    results = OrderedDict()
    for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
        hidden = not comm.is_main_process()
        images = Trainer.build_test_loader(cfg, name)
        loader = progress(images, total=len(images), desc=name, unit="image", disable=hidden)
        results[name] = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results[name])
    if len(results) == 1:  # as Trainer.test
        results = results[cfg.DATASETS.TEST[0]]
    if comm.is_main_process():
        print(f"\n{markdown_table([evaluator.results for evaluator in evaluators])}\n")
        print(f"Figures, settings and report.html: {cfg.OUTPUT_DIR}")
        verify_results(cfg, results)
    if comm.get_world_size() > 1:
        # With GLOO, a rank that leaves its process group alive may abort at exit, and launch()
        # then kills the others, rank 0 perhaps before it has written the results.
        comm.synchronize()
        torch.distributed.destroy_process_group()
    return results


def segment_base(model: Any, image: dict[str, Any]) -> torch.Tensor:
    """The base method's label map (H, W) of an image, by a :class:`freecp_d2.FreeCP`.

    Args:
        image: as `InferenceMapper` gives it.
    """
    (result,) = model.segment_base(model.encode([image], base=True), model.words)
    return result["label_map"]


def _keep_in_the_file(output_dir: str) -> None:
    """Leave on screen only the warnings of what Detectron2 logs; log.txt has all.

    Detectron2's `setup_logger` gives a logger its handlers once, for arguments that it has not seen
    yet. These are the arguments of `default_setup`.
    """
    rank = comm.get_rank()
    for logger in (
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
    ):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setLevel(logging.WARNING)


def run(args: argparse.Namespace) -> None:
    """What each rank runs: :func:`evaluate`, and one line where the input is wrong."""
    try:
        require_one_job(args.job, max(args.num_machines * args.num_gpus, 1))
        evaluate(args)
    except (OSError, ValueError) as error:
        sys.exit(f"{args.prog}: {error}")


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Detectron2's options and those of this command. `prog`: as in :func:`main`."""
    parser = default_argument_parser(epilog=__doc__)
    parser.prog = prog or parser.prog
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this file first; it registers a data set (projects/CamVid/camvid.py is an "
        "example); may be given several times",
    )
    parser.add_argument(
        "--coco-predictions",
        action="store_true",
        help="also write sem_seg_predictions.json, COCO's RLE segments",
    )
    parser.add_argument(
        "--compare-with",
        metavar="results.json",
        help="of the base method on the same data set; the report shows both",
    )
    # Detectron2's port is the same for all jobs of a user.
    parser.set_defaults(dist_url="auto", prog=parser.prog)
    args = parser.parse_args(argv)
    if not args.config_file:
        sys.exit(f"{args.prog}: name a config: --config-file scenes/clearclip")
    if args.num_machines > 1 and args.dist_url == "auto":
        sys.exit(
            f"{args.prog}: several machines need --dist-url tcp://<the first's address>:<port>"
        )
    args.job = job_token(args)
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line, on as many ranks as it says.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input; it says what.
    """
    args = parse_args(argv, prog)
    args.eval_only = True
    launch_ranks(args)


def launch_ranks(args: argparse.Namespace) -> None:
    """:func:`run` by Detectron2's `launch`. Args and errors are those of :func:`main`."""
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
