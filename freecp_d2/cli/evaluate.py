"""Evaluate FreeCP, or a base method alone, on data sets of Detectron2's catalogs.

    freecp evaluate --config-file scenes/clearclip

The options are Detectron2's own, --register, --coco-predictions and --compare-with. Results lie in
OUTPUT_DIR, or in OUTPUT_DIR/<data set> where several are evaluated. There is no training: FreeCP
has no parameters of its own, and CLIP (MODEL.CLIP.PRETRAINED) stays frozen.
"""

import argparse
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..affinity import AffinityFault
from ..config import config_path, load_config
from ..data.mapper import InferenceMapper, ground_truth
from ..distributed import from_main, job_token, require_one_job
from ..errors import add_debug_option, one_sentence
from ..evaluation import FreeCPSemSegEvaluator
from ..evaluation.dataset import ImageFault, require_registered
from ..evaluation.facts import facts_of
from ..evaluation.stream import STATE, Stream
from ..evaluation.table import markdown_table
from ..files import require_writable, sweep
from ..inputs import FAILURES
from ..locks import locked
from ..memory import memory_ran_out
from ..progress import progress
from ..stopping import Stop, stopping
from .launch import launch_by, say_how_to_go_on
from .register import add_register_option, register_files

log = logging.getLogger(__name__)


class SparingMapper:
    """What :class:`InferenceMapper` gives; of an image that cannot be read `file_name`, `error`."""

    def __init__(self, mapper: InferenceMapper):
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        try:
            return self._mapper(record) | ground_truth(record["sem_seg_file_name"])
        except FAILURES as error:
            return {"file_name": record["file_name"], "error": " ".join(str(error).split())}


class Trainer(DefaultTrainer):
    """Detectron2's trainer, of which only the evaluation is used."""

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, done: Collection[str] = ()
    ) -> torch.utils.data.DataLoader | list:
        """Images of `dataset_name`, read and resized by `InferenceMapper`.

        One that cannot be read is a dict with `error`.

        Args:
            done: files of images that are left out.
        """
        records = [r for r in DatasetCatalog.get(dataset_name) if r["file_name"] not in done]
        if not records:
            return []
        mapper = SparingMapper(InferenceMapper(cfg))
        return build_detection_test_loader(
            dataset=records,
            mapper=mapper,
            batch_size=cfg.TEST.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

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


def setup(args: argparse.Namespace, stack: ExitStack) -> CfgNode:
    """The frozen config of the command line, with logging set up and OUTPUT_DIR held.

    Args:
        stack: it lets go of OUTPUT_DIR.
    """
    args.config_file = str(config_path(args.config_file))  # Detectron2 opens it for the log
    cfg = load_config(args.config_file, [*args.opts, "MODEL.FREECP.OUTPUT", "label_map"])

    def hold() -> None:
        require_writable(Path(cfg.OUTPUT_DIR))
        stack.enter_context(locked(Path(cfg.OUTPUT_DIR), args.prog))
        sweep(Path(cfg.OUTPUT_DIR), age=0)

    from_main(hold)
    _keep_in_the_file(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="freecp_d2")
    return cfg


def evaluate(args: argparse.Namespace) -> dict:
    """Evaluate on every data set of DATASETS.TEST.

    With --resume the images count that an earlier run has evaluated in OUTPUT_DIR. An image that
    cannot be read, or whose ground truth cannot, is left out, and the results say so.

    Returns:
        On rank 0 Detectron2's results, of one data set or by their names; else of no meaning.

    Raises:
        OSError: something could not be read or written.
        SystemExit: with 130 or 143, after the image at hand, where a signal came.
        ValueError: DATASETS.TEST is empty, an adapter is to run on several ranks, whose images have
            no common order, or a file of --register wants a package that is not there; see also
            :meth:`FreeCPSemSegEvaluator.resume`.
    """
    results, _ = _evaluate(args)
    return results


def _evaluate(args: argparse.Namespace) -> tuple[dict, int]:
    """The results, and the exit code: 3 where images have failed."""
    register_files(args.register)
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        cfg = setup(args, stack)
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty; name the data sets to evaluate")
        model: Any
        # First, since they see what is wrong with the data, and loading CLIP takes longer.
        mapper = InferenceMapper(cfg)
        options = {
            "stage_seconds": lambda: model.timings,
            "coco_predictions": args.coco_predictions,
            "compare_with": args.compare_with,
            "segment": lambda image: model([mapper(image)])[0]["label_map"],
        }
        if cfg.MODEL.FREECP.ENABLED:
            options["segment_base"] = lambda image: segment_base(model, mapper(image))
        evaluators = [Trainer.build_evaluator(cfg, name, **options) for name in cfg.DATASETS.TEST]
        model = Trainer.build_model(cfg)
        if not hasattr(model, "vocabulary"):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no vocabulary; choose "
                "FreeCP"
            )
        if model.words.adapter is not None and comm.get_world_size() > 1:
            raise ValueError(
                f"MODEL.FREECP.ADAPTER {cfg.MODEL.FREECP.ADAPTER} follows the order of the images, "
                f"and there are {comm.get_world_size()} ranks; evaluate with --num-gpus 1"
            )
        facts = facts_of(cfg, model)
        for evaluator in evaluators:
            evaluator.check_vocabulary(model.vocabulary)
            evaluator.facts.update(facts)
        results: Any = OrderedDict()
        with inference_context(model), torch.no_grad():
            for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
                results[name] = evaluate_on(cfg, name, model, evaluator, stop, args.resume)
        code = 0
        if comm.is_main_process():
            print(f"\n{markdown_table([evaluator.results for evaluator in evaluators])}\n")
            print(f"Figures, settings and report.html: {cfg.OUTPUT_DIR}")
            code = 3 if any("failed" in evaluator.results for evaluator in evaluators) else 0
        if len(results) == 1:  # as Trainer.test
            results = results[cfg.DATASETS.TEST[0]]
        if comm.is_main_process():
            verify_results(cfg, results)
        return results, comm.all_gather(code)[0]


def evaluate_on(
    cfg: CfgNode,
    dataset_name: str,
    model: nn.Module,
    evaluator: FreeCPSemSegEvaluator,
    stop: Stop,
    resume: bool,
) -> OrderedDict | None:
    """Evaluate on one data set, as Detectron2's `inference_on_dataset` does.

    Args:
        stop: what asks to stop after the image at hand.
        resume: count what an earlier run has evaluated.

    Raises:
        SystemExit: a rank was asked to stop.
    """
    done: Collection[str] = ()
    if resume:
        done = evaluator.resume()
        log.info("%s: %d images are evaluated already", dataset_name, len(done))
    else:
        evaluator.reset()
    stream = stream_of(cfg, dataset_name, model, evaluator, done)
    images = Trainer.build_test_loader(cfg, dataset_name, done)
    hidden = not comm.is_main_process()
    unit = "image" if cfg.TEST.IMS_PER_BATCH == 1 else "batch"
    start = time.monotonic()
    for batch in progress(images, total=len(images), desc=dataset_name, unit=unit, disable=hidden):
        evaluate_images(model, batch, evaluator)
        if stream is not None:
            stream.add([image["file_name"] for image in batch if "error" not in image])
        if stop.signal is not None:
            break
    evaluator.flush()
    stopped = next(filter(None, comm.all_gather(stop.exit_code)), 0)
    if stopped:
        sys.exit(stopped)
    log.info("%s: %.1f s of inference on rank 0", dataset_name, time.monotonic() - start)
    if stream is not None:
        evaluator.facts.update(stream.facts())
    results = evaluator.evaluate()
    if comm.is_main_process():
        print_csv_format(results)
    return results


def stream_of(
    cfg: CfgNode,
    dataset_name: str,
    model: Any,
    evaluator: FreeCPSemSegEvaluator,
    done: Collection[str],
) -> Stream | None:
    """Of a model with an adapter, which has then seen the images of `done`; else None.

    Raises:
        OSError, ValueError: see :meth:`.Stream.resume`.
    """
    adapter = model.words.adapter
    if adapter is None:
        return None
    stream = Stream(adapter, evaluator.records_folder / STATE)
    mapper = InferenceMapper(cfg)
    records = {r["file_name"]: r for r in DatasetCatalog.get(dataset_name)}
    stream.resume(
        (file for file in records if file in done), lambda file: model([mapper(records[file])])
    )
    return stream


def evaluate_images(
    model: nn.Module, images: Sequence[dict[str, Any]], evaluator: FreeCPSemSegEvaluator
) -> None:
    """Segment images at once and count them; one that is broken is an image that failed.

    Args:
        images: of :class:`SparingMapper`.
    """
    for image in images:
        if "error" in image:
            evaluator.fail(image["file_name"], image["error"])
    whole = [image for image in images if "error" not in image]
    if not whole:
        return
    try:
        outputs = model(whole)
    except Exception as error:
        out_of_memory = memory_ran_out(error)
        if not out_of_memory and not isinstance(error, AffinityFault):
            raise
        if len(whole) > 1:
            for image in whole:
                evaluate_images(model, [image], evaluator)
            return
        file = whole[0]["file_name"]
        more = f"{file}: memory ran out; resume on a machine that has more"
        evaluator.fail(file, more if out_of_memory else str(error))
        return
    for image, output in zip(whole, outputs, strict=True):
        try:
            evaluator.process([image], [output])
        except ImageFault as error:
            evaluator.fail(image["file_name"], str(error))


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


def run(args: argparse.Namespace) -> int:
    """What each rank runs: :func:`evaluate`; the exit code, 3 where images have failed."""
    with one_sentence(args.prog, args.debug):
        require_one_job(args.job, max(args.num_machines * args.num_gpus, 1))
        return _evaluate(args)[1]


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Detectron2's options and those of this command. `prog`: as in :func:`main`."""
    parser = default_argument_parser(epilog=__doc__)
    parser.prog = prog or parser.prog
    add_register_option(parser)
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
    add_debug_option(parser)
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


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line, on as many ranks as it says; the exit code.

    0: all is well; 3: images have failed, and the figures are of the others; 130, 143: a signal
    stopped it, and the command that goes on is said.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input, or cannot be written; it says what.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(given, prog)
    args.eval_only = True
    return launch_ranks(args, given)


def launch_ranks(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """:func:`run` on all ranks; exit code and errors are those of :func:`main`.

    Args:
        argv: what the arguments were read from.
    """
    code = launch_by(args, run)
    say_how_to_go_on(args, code, argv if args.resume else ["--resume", *argv])
    return code
