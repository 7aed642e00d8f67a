"""The config of a student: Detectron2's own keys, and those of this project."""

import os
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec

from detectron2.config import CfgNode, get_cfg

from freecp_d2.config import choose_device, merge_safely


def add_pseudo_labels_config(cfg: CfgNode) -> None:
    """Add PSEUDO_LABELS to a Detectron2 config; all other keys are Detectron2's own."""
    pseudo = cfg.PSEUDO_LABELS = CfgNode()
    # sem_seg.json of `freecp label`; train_net.py registers it as the data set "pseudo_labels".
    pseudo.LABELS = ""
    # True: each pixel's cross entropy counts by the teacher's confidence there, which
    # `freecp label --scores` writes. It takes the place of the head's own loss.
    pseudo.CONFIDENCE_WEIGHTED = False
    # Weight of the relation distillation of Global Knowledge Calibration; 0: off. Published: 10.
    pseudo.RELATION_WEIGHT = 0.0
    # FreeCP's config, a file or a name such as "scenes/sclip", whose CLIP encodes the class names
    # for the relation distillation.
    pseudo.TEACHER = ""
    # results.json of that config's evaluation on DATASETS.TEST, shown beside the student's figures.
    pseudo.TEACHER_RESULTS = ""


def load_student_config(config_file: str | os.PathLike, opts: Sequence[str] = ()) -> CfgNode:
    """A config on top of Detectron2's Base-RCNN-FPN.yaml, on the CPU where there is no GPU.

    It has DeepLab's keys, too, where `detectron2.projects.deeplab` is installed.

    Args:
        config_file: YAML; Python objects in it are refused.
        opts: KEY VALUE pairs that override it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no config, or a pair is none.
    """
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"config {config_file}: no such file; check the path")
    cfg = get_cfg()
    add_pseudo_labels_config(cfg)
    deeplab = find_spec("detectron2.projects.deeplab")
    if deeplab:
        from detectron2.projects.deeplab import add_deeplab_config

        add_deeplab_config(cfg)
    merge_safely(cfg, str(files("detectron2") / "model_zoo/configs/Base-RCNN-FPN.yaml"))
    try:
        merge_safely(cfg, os.fspath(config_file))
    except ValueError as error:
        if deeplab:
            raise
        raise ValueError(
            f"{error} (DeepLabV3+ needs detectron2.projects.deeplab, which this Detectron2 has not)"
        ) from None
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"config override: {error.args[0]}; give KEY VALUE pairs") from None
    choose_device(cfg)
    return cfg
