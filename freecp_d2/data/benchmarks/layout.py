"""Where each benchmark's files lie under DETECTRON2_DATASETS, and what its ids mean.

Plain data, no disk access. `catalog.py` reads it to register, `freecp_d2.data.prepare` to write.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

COCO_MISSING_IDS: frozenset[int] = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
"""COCO category ids between 1 and 182 that no class of COCO-Stuff has."""

COCO_IDS: tuple[int, ...] = tuple(i for i in range(1, 183) if i not in COCO_MISSING_IDS)
"""COCO category ids of COCO-Stuff's 171 classes; the first 80 are the things."""

# fmt: off
PASCAL_CONTEXT_IDS: tuple[int, ...] = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
"""Of the 459 labels of Pascal Context's annotation, those of the 59 classes, in their order."""

CITYSCAPES_IDS: tuple[int, ...] = (
    7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33,
)
"""labelIds of Cityscapes' 19 evaluated classes, in the order of the trainIds."""
# fmt: on


@dataclass(frozen=True)
class Layout:
    """Folders and file names. A mask and its image share the name before the suffix.

    Attributes:
        image_folder, mask_folder: relative to DETECTRON2_DATASETS; they may have subfolders.
        image_suffix, mask_suffix: the end of the file names. A mask is a PNG of one channel of
            uint8: contiguous class ids and `ignore_label`.
        file_list: relative to DETECTRON2_DATASETS, a text file with one name (without suffix) a
            line. None: every mask in the folder counts.
    """

    image_folder: str
    image_suffix: str
    mask_folder: str
    mask_suffix: str
    file_list: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One of the eight benchmarks of METHOD.md step 9.

    Attributes:
        name: what configs, vocabulary files and `python -m freecp_d2.data.prepare` call it.
        dataset: its name in Detectron2's catalogs.
        layouts: where its files may lie; the first whose mask folder (and file list) is there is
            read. `freecp_d2.data.prepare` writes the first.
        num_images: of the official validation set.
        dataset_ids: the data set's own id of each contiguous id, in their order. COCO's are
            category ids, Pascal Context's those of its 459 labels, Cityscapes' the labelIds. With
            a scored background, contiguous id 0 is the background and has dataset id 0.
        pixel_offset: what a pixel of the official label map falls short of the dataset id (1 in
            COCO-Stuff's stuffthingmaps, whose pixels are the category ids less one).
        scored_background: whether contiguous id 0 is the background.
        source: where its official files are.
        licence: in a few words.
        ignore_label: of the masks that evaluation reads.
    """

    name: str
    dataset: str
    layouts: tuple[Layout, ...]
    num_images: int
    dataset_ids: tuple[int, ...]
    source: str
    licence: str
    scored_background: bool = False
    pixel_offset: int = 0
    ignore_label: int = 255

    @property
    def layout(self) -> Layout:
        """The one that `freecp_d2.data.prepare` writes."""
        return self.layouts[0]

    @property
    def num_classes(self) -> int:
        """With the background where it is scored."""
        return len(self.dataset_ids)

    @property
    def contiguous_ids(self) -> dict[int, int]:
        """Dataset id -> contiguous id."""
        return {own: index for index, own in enumerate(self.dataset_ids)}

    @property
    def pixel_to_contiguous(self) -> dict[int, int]:
        """Pixel of the official label map -> contiguous id; every other pixel is ignored."""
        return {own - self.pixel_offset: index for index, own in enumerate(self.dataset_ids)}


_VOC2012 = "VOCdevkit/VOC2012"
_VOC2010 = "VOCdevkit/VOC2010"
_VOC_LIST = f"{_VOC2012}/ImageSets/Segmentation/val.txt"
_CONTEXT_LIST = f"{_VOC2010}/ImageSets/SegmentationContext/val.txt"
_FLICKR = "images: Flickr's terms of use"

_COCO_STUFF = Benchmark(
    name="coco_stuff164k",
    dataset="coco_2017_val_stuff164k_sem_seg",
    layouts=(
        Layout("coco/val2017", ".jpg", "coco/stuffthingmaps_detectron2/val2017", ".png"),
        Layout(
            "coco_stuff164k/images/val2017",
            ".jpg",
            "coco_stuff164k/annotations/val2017",
            "_labelTrainIds.png",
        ),
    ),
    num_images=5000,
    dataset_ids=COCO_IDS,
    pixel_offset=1,
    source="https://github.com/nightrome/cocostuff",
    licence=f"annotations: CC BY 4.0; {_FLICKR}",
)
_COCO_OBJECT = Benchmark(
    name="coco_object",
    dataset="coco_2017_val_object_sem_seg",
    layouts=(
        Layout("coco/val2017", ".jpg", "coco/objectmaps_detectron2/val2017", ".png"),
        Layout(
            "coco_object/images/val2017",
            ".jpg",
            "coco_object/annotations/val2017",
            "_instanceTrainIds.png",
        ),
    ),
    num_images=5000,
    dataset_ids=(0, *COCO_IDS[:80]),
    scored_background=True,
    source="https://cocodataset.org/#download",
    licence=f"annotations: CC BY 4.0; {_FLICKR}",
)
_ADE20K = Benchmark(
    name="ade20k",
    dataset="ade20k_150_val_sem_seg",
    layouts=(
        Layout(
            "ADEChallengeData2016/images/validation",
            ".jpg",
            "ADEChallengeData2016/annotations_detectron2/validation",
            ".png",
        ),
    ),
    num_images=2000,
    dataset_ids=tuple(range(1, 151)),
    source="http://sceneparsing.csail.mit.edu",
    licence="annotations: BSD 3-clause; images: non-commercial research and education",
)
_VOC20 = Benchmark(
    name="voc20",
    dataset="voc_2012_val_20_sem_seg",
    layouts=(
        Layout(
            f"{_VOC2012}/JPEGImages",
            ".jpg",
            f"{_VOC2012}/annotations_detectron2",
            ".png",
            _VOC_LIST,
        ),
    ),
    num_images=1449,
    dataset_ids=tuple(range(1, 21)),
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    licence=_FLICKR,
)
_VOC21 = Benchmark(
    name="voc21",
    dataset="voc_2012_val_21_sem_seg",
    layouts=(
        Layout(
            f"{_VOC2012}/JPEGImages", ".jpg", f"{_VOC2012}/SegmentationClass", ".png", _VOC_LIST
        ),
    ),
    num_images=1449,
    dataset_ids=tuple(range(21)),
    scored_background=True,
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    licence=_FLICKR,
)
_PCONTEXT59_MASKS = f"{_VOC2010}/annotations_detectron2/pc59_val"
_PCONTEXT59 = Benchmark(
    name="pcontext59",
    dataset="pcontext_59_val_sem_seg",
    layouts=(
        Layout(f"{_VOC2010}/JPEGImages", ".jpg", _PCONTEXT59_MASKS, ".png", _CONTEXT_LIST),
        Layout(f"{_VOC2010}/JPEGImages", ".jpg", _PCONTEXT59_MASKS, ".png"),
    ),
    num_images=5104,
    dataset_ids=PASCAL_CONTEXT_IDS,
    source="https://www.cs.stanford.edu/~roozbeh/pascal-context",
    licence=f"annotations: none stated, ask the authors; {_FLICKR}",
)
_PCONTEXT60 = Benchmark(
    name="pcontext60",
    dataset="pcontext_60_val_sem_seg",
    layouts=(
        Layout(
            f"{_VOC2010}/JPEGImages",
            ".jpg",
            f"{_VOC2010}/SegmentationClassContext",
            ".png",
            _CONTEXT_LIST,
        ),
    ),
    num_images=5104,
    dataset_ids=(0, *PASCAL_CONTEXT_IDS),
    scored_background=True,
    source=_PCONTEXT59.source,
    licence=_PCONTEXT59.licence,
)
_CITYSCAPES = Benchmark(
    name="cityscapes",
    dataset="cityscapes_19_val_sem_seg",
    layouts=(
        Layout(
            "cityscapes/leftImg8bit/val",
            "_leftImg8bit.png",
            "cityscapes/gtFine/val",
            "_gtFine_labelTrainIds.png",
        ),
    ),
    num_images=500,
    dataset_ids=CITYSCAPES_IDS,
    source="https://www.cityscapes-dataset.com",
    licence="Cityscapes' own: registration, non-commercial use",
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        benchmark.name: benchmark
        for benchmark in (
            _COCO_STUFF,
            _COCO_OBJECT,
            _ADE20K,
            _VOC20,
            _VOC21,
            _PCONTEXT59,
            _PCONTEXT60,
            _CITYSCAPES,
        )
    }
)
"""By name."""
