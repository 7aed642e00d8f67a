"""What the student is told of its teacher, FreeCP."""

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from freecp_d2 import FreeCP, load_config
from freecp_d2.data import dataset_vocabulary
from freecp_d2.evaluation.results import load_results
from freecp_d2.extensions import Extensions
from freecp_d2.words import encode_words


def text_features(cfg: CfgNode) -> Tensor:
    """Features of the classes of DATASETS.TRAIN by the CLIP of PSEUDO_LABELS.TEACHER.

    Returns:
        (K, E) float32 of unit length, as decorrelated as the teacher's; of a class with several
        names, their mean's direction.

    Raises:
        FileNotFoundError, ValueError: there is no such teacher.
    """
    teacher = cfg.PSEUDO_LABELS.TEACHER
    if not teacher:
        raise ValueError(
            "PSEUDO_LABELS.RELATION_WEIGHT is set, but not PSEUDO_LABELS.TEACHER, whose CLIP "
            "encodes the names of the classes; name FreeCP's config, such as scenes/sclip"
        )
    vocabulary = dataset_vocabulary(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))
    parts = FreeCP.parts_from_config(load_config(teacher, ["MODEL.DEVICE", "cpu"]))
    decorrelated = Extensions(decorrelation=parts["extensions"].decorrelation)
    words = encode_words(parts["text_encoder"], vocabulary, None, decorrelated)
    text = words.text[words.num_background :].float()
    sums = text.new_zeros(len(vocabulary.classes), text.shape[1])
    return F.normalize(sums.index_add(0, words.query_class, text), dim=1)


def teacher_metrics(cfg: CfgNode) -> dict[str, float]:
    """The teacher's figures of PSEUDO_LABELS.TEACHER_RESULTS; none where that is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of an evaluation.
    """
    file = cfg.PSEUDO_LABELS.TEACHER_RESULTS
    metrics = load_results(file)["metrics"] if file else {}
    return {name: value for name, value in metrics.items() if value is not None}
