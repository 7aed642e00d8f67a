"""Evaluate FreeCP, or a base method alone, on data sets of Detectron2's catalogs.

    python train_net.py --config-file configs/scenes/clearclip.yaml --eval-only

The options are Detectron2's own and --register. There is no training: FreeCP has no parameters of
its own, and CLIP (MODEL.CLIP.PRETRAINED) stays frozen.
"""

import argparse
import os
import runpy
import sys

# Before torch is loaded. Its threads otherwise spin while they wait for each other, which makes
# everything some ten times slower as soon as another process wants one of the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from freecp_d2 import load_config
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.evaluation import MeanIoUEvaluator


class Trainer(DefaultTrainer):
    """Detectron2's trainer, of which only the evaluation is used."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        """Images of `dataset_name`, read and resized by `InferenceMapper`."""
        return build_detection_test_loader(cfg, dataset_name, mapper=InferenceMapper(cfg))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> MeanIoUEvaluator:
        """Writes its results to OUTPUT_DIR/inference/`dataset_name`.

        Raises:
            ValueError: `dataset_name` is not registered for semantic segmentation.
        """
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type != "sem_seg":
            raise ValueError(
                f"{dataset_name}: evaluator_type is {evaluator_type!r}; only data sets registered "
                "with 'sem_seg' can be evaluated"
            )
        return MeanIoUEvaluator(
            dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of the command line, with logging set up."""
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="freecp_d2")
    return cfg


def main(args: argparse.Namespace) -> dict:
    """Evaluate on every data set of DATASETS.TEST; what each rank runs.

    Raises:
        ValueError: DATASETS.TEST is empty.
    """
    for file in args.register:
        runpy.run_path(file)
    cfg = setup(args)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; name the data sets to evaluate")
    results = Trainer.test(cfg, Trainer.build_model(cfg))
    if comm.is_main_process():
        verify_results(cfg, results)
    if comm.get_world_size() > 1:
        # With GLOO, a rank that leaves its process group alive may abort at exit, and launch()
        # then kills the others, rank 0 perhaps before it has written the results.
        comm.synchronize()
        torch.distributed.destroy_process_group()
    return results


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Detectron2's options and --register."""
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this file first; it registers a data set (projects/CamVid/camvid.py is an "
        "example); may be given several times",
    )
    args = parser.parse_args(argv)
    if not args.eval_only:
        sys.exit("train_net.py: FreeCP is training-free, nothing to train: use --eval-only")
    if not args.config_file:
        sys.exit("train_net.py: name a config: --config-file configs/scenes/clearclip.yaml")
    return args


if __name__ == "__main__":
    args = parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
