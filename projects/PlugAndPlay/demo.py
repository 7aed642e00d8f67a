"""SceneCLIP as a Hugging Face CLIP, without and with FreeCP, on scenes of the embedded benchmark.

    python projects/PlugAndPlay/demo.py

Writes the converted model to output/plug_and_play/scene_clip and prints a table.
"""

import argparse
from itertools import islice
from pathlib import Path

from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from huggingface_clip import HuggingFaceFreeCP, from_open_clip
from tabulate import tabulate

import freecp_d2.data.scenes  # noqa: F401  registers scenes_val
from freecp_d2 import FreeCP, load_config
from freecp_d2.clip import load_clip
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.evaluation import FreeCPSemSegEvaluator

CONFIGS = Path(__file__).parent / "configs"


def evaluate(model: FreeCP, loader: list[list[dict]], dataset: str) -> float:
    """mIoU in percent over the batches of `loader`."""
    evaluator = FreeCPSemSegEvaluator(dataset, distributed=False)
    return inference_on_dataset(model, loader, evaluator)["sem_seg"]["mIoU"]


def main() -> None:
    """Convert, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="how many scenes (default: 20)")
    args = parser.parse_args()
    scenes = load_config("configs/scenes/clearclip.yaml")
    hugging = load_config(str(CONFIGS / "huggingface_scenes.yaml"))
    clip, _ = load_clip(scenes.MODEL.CLIP.NAME, scenes.MODEL.CLIP.PRETRAINED, "fp32")
    from_open_clip(clip).save_pretrained(hugging.MODEL.CLIP.NAME)
    (dataset,) = scenes.DATASETS.TEST
    loader = build_detection_test_loader(scenes, dataset, mapper=InferenceMapper(scenes))
    batches = list(islice(loader, args.images))
    rows = []
    for name, cfg, kind in (
        ("open_clip", scenes, FreeCP),
        ("transformers", hugging, HuggingFaceFreeCP),
    ):
        model = kind(cfg).to(cfg.MODEL.DEVICE).eval()
        ours = evaluate(model, batches, dataset)
        model.enabled = False
        rows.append((name, evaluate(model, batches, dataset), ours))
    print(f"\nmIoU on {len(batches)} scenes, percent\n")
    print(tabulate(rows, ("SceneCLIP in", "alone", "+ FreeCP"), "github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
