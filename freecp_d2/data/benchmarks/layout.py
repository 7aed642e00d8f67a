"""Where each benchmark's files lie under DETECTRON2_DATASETS, and what its ids mean.

Plain data, no disk access. `catalog.py` reads it to register, `freecp_d2.data.prepare` to write.
"""

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .ade20k_ids import ADE20K_847_IDS

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
            contiguous class ids and `ignore_label`, uint8 or, where they need it, uint16. A TIFF
            is another project's.
        file_list: relative to DETECTRON2_DATASETS, a text file with one name (without suffix) a
            line. None: every mask in the folder counts.
        shared_images: whether the masks alone say which images are of the set, as where the image
            folder holds other images too and there is no list. `freecp_d2.data.prepare` writes no
            such layout.
    """

    image_folder: str
    image_suffix: str
    mask_folder: str
    mask_suffix: str
    file_list: str | None = None
    shared_images: bool = False

    @property
    def tree(self) -> str:
        """The folder that holds images and masks, relative to DETECTRON2_DATASETS."""
        return posixpath.commonpath([self.image_folder, self.mask_folder])


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps of other ids, of which a benchmark's own are made.

    Attributes:
        path: relative to DETECTRON2_DATASETS; it may have subfolders.
        suffix: the end of the file names.
        ids: pixel -> contiguous id.
        others: pixels that are no class and become `fill`. Any further pixel is an error.
        without: ends of file names in the same folder that are something else.
        names_the_set: whether the folder holds the validation set and nothing else.
        in_colors: whether they are colours of the full ADE20K, R // 10 * 256 + G for the id.
    """

    path: str
    suffix: str
    ids: Mapping[int, int]
    others: Collection[int]
    fill: int = 255
    without: tuple[str, ...] = ()
    names_the_set: bool = False
    in_colors: bool = False


@dataclass(frozen=True)
class CocoInstances:
    """`path`: instances_val2017.json of COCO."""

    path: str


@dataclass(frozen=True)
class ContextJson:
    """`path`: trainval_merged.json of Pascal Context."""

    path: str


@dataclass(frozen=True)
class ContextMats:
    """`path`: a folder of .mat files of Pascal Context; `lists`: where its validation set is named.

    The first list that is there counts.
    """

    path: str
    lists: tuple[str, ...]


Source = LabelMaps | CocoInstances | ContextJson | ContextMats
"""What `freecp_d2.data.prepare` makes label maps from."""


@dataclass(frozen=True)
class Benchmark:
    """One of the eight benchmarks of METHOD.md step 9, or of the two of large vocabularies.

    Attributes:
        name: what configs, vocabulary files and `python -m freecp_d2.data.prepare` call it.
        dataset: its name in Detectron2's catalogs.
        layouts: where its files may lie; the first that has images and label maps is read.
            `freecp_d2.data.prepare` writes the first, unless images or sources lie in another.
        sources: what label maps are made from. The kind that comes first is preferred, and of a
            kind what lies in the tree of the images.
        num_images: of the official validation set.
        dataset_ids: the data set's own id of each contiguous id, in their order. COCO's are
            category ids, Pascal Context's those of its 459 labels, Cityscapes' the labelIds,
            ADE20K-847's those of the full ADE20K's objects, counted from 1. With a scored
            background, contiguous id 0 is the background and has dataset id 0.
        pixel_offset: what a pixel of the official label map falls short of the dataset id (1 in
            COCO-Stuff's stuffthingmaps, whose pixels are the category ids less one).
        scored_background: whether contiguous id 0 is the background.
        source: where its official files are.
        licence: in a few words.
        ignore_label: of the masks that evaluation reads.
        ignores: whether a pixel of its masks may be ignored; COCO-Object and PC60 ignore none.
        in_paper: whether it is one of the eight, which have published figures and descriptions.
    """

    name: str
    dataset: str
    layouts: tuple[Layout, ...]
    num_images: int
    dataset_ids: tuple[int, ...]
    source: str
    licence: str
    sources: tuple[Source, ...] = ()
    scored_background: bool = False
    pixel_offset: int = 0
    ignore_label: int = 255
    ignores: bool = True
    in_paper: bool = True

    @property
    def layout(self) -> Layout:
        """The one that `freecp_d2.data.prepare` writes where nothing speaks for another."""
        return self.layouts[0]

    @property
    def num_classes(self) -> int:
        """With the background where it is scored."""
        return len(self.dataset_ids)

    @property
    def contiguous_ids(self) -> dict[int, int]:
        """Dataset id -> contiguous id."""
        return {id_: index for index, id_ in enumerate(self.dataset_ids)}

    @property
    def pixel_to_contiguous(self) -> dict[int, int]:
        """Pixel of the official label map -> contiguous id; every other pixel is ignored."""
        return {id_ - self.pixel_offset: index for index, id_ in enumerate(self.dataset_ids)}


_FLICKR = "images: Flickr's terms of use"
_DERIVED = ("_labelTrainIds.png", "_instanceTrainIds.png")
"""What MMSegmentation's and GroupViT's converters write beside COCO-Stuff's official maps."""

# Trees of COCO: Detectron2's and SAN's, MMSegmentation's, CAT-Seg's, FreeCP's and ClearCLIP's.
_STUFF_LAYOUTS = (
    Layout("coco/val2017", ".jpg", "coco/stuffthingmaps_detectron2/val2017", ".png"),
    Layout(
        "coco_stuff164k/images/val2017",
        ".jpg",
        "coco_stuff164k/annotations/val2017",
        "_labelTrainIds.png",
    ),
    Layout(
        "coco-stuff/images/val2017", ".jpg", "coco-stuff/annotations_detectron2/val2017", ".png"
    ),
    Layout(
        "ms_coco_17/images/val2017", ".jpg", "ms_coco_17/annotations/stuff", "_labelTrainIds.png"
    ),
)
_STUFF_FOLDERS = (
    "coco/stuffthingmaps/val2017",
    "coco_stuff164k/annotations/val2017",
    "coco-stuff/annotations/val2017",
    "ms_coco_17/annotations/stuff",
)
"""COCO-Stuff's official maps: a pixel is the COCO category id less one, or 255."""

_COCO_STUFF = Benchmark(
    name="coco_stuff164k",
    dataset="coco_2017_val_stuff164k_sem_seg",
    layouts=_STUFF_LAYOUTS,
    num_images=5000,
    dataset_ids=COCO_IDS,
    pixel_offset=1,
    # The 11 ids that COCO dropped do not occur.
    sources=tuple(
        LabelMaps(
            folder,
            ".png",
            {id_ - 1: index for index, id_ in enumerate(COCO_IDS)},
            (255,),
            without=_DERIVED,
        )
        for folder in _STUFF_FOLDERS
    ),
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
        Layout(
            "coco_stuff164k/images/val2017",
            ".jpg",
            "coco_stuff164k/annotations/val2017",
            "_instanceTrainIds.png",
        ),
        Layout(
            "coco-stuff/images/val2017",
            ".jpg",
            "coco-stuff/objectmaps_detectron2/val2017",
            ".png",
        ),
        Layout(
            "ms_coco_17/images/val2017",
            ".jpg",
            "ms_coco_17/annotations/object",
            "_instanceTrainIds.png",
        ),
    ),
    num_images=5000,
    dataset_ids=(0, *COCO_IDS[:80]),
    scored_background=True,
    ignores=False,
    # METHOD.md section 9: the things of COCO-Stuff's maps, everything else is background. The
    # instances, which crowds and overlaps make another ground truth, only where there are none.
    sources=(
        *(
            LabelMaps(
                folder,
                ".png",
                {id_ - 1: index for index, id_ in enumerate(COCO_IDS[:80], start=1)},
                range(256),
                fill=0,
                without=_DERIVED,
            )
            for folder in _STUFF_FOLDERS
        ),
        *(
            LabelMaps(
                layout.mask_folder,
                layout.mask_suffix,
                {thing: thing + 1 for thing in range(80)},
                (*range(80, 171), 255),
                fill=0,
            )
            for layout in _STUFF_LAYOUTS
        ),
        *(
            CocoInstances(f"{tree}/annotations/instances_val2017.json")
            for tree in ("coco", "coco_stuff164k", "coco-stuff", "ms_coco_17", "coco_object")
        ),
    ),
    source="https://github.com/nightrome/cocostuff",
    licence=f"annotations: CC BY 4.0; {_FLICKR}",
)
_ADE_TREES = ("ADEChallengeData2016", "ade/ADEChallengeData2016", "ADE/ADEChallengeData2016")
_ADE20K = Benchmark(
    name="ade20k",
    dataset="ade20k_150_val_sem_seg",
    layouts=tuple(
        Layout(
            f"{tree}/images/validation",
            ".jpg",
            f"{tree}/annotations_detectron2/validation",
            ".png",
        )
        for tree in _ADE_TREES
    ),
    num_images=2000,
    dataset_ids=tuple(range(1, 151)),
    sources=tuple(
        LabelMaps(
            f"{tree}/annotations/validation", ".png", {id_: id_ - 1 for id_ in range(1, 151)}, (0,)
        )
        for tree in _ADE_TREES
    ),
    source="http://sceneparsing.csail.mit.edu",
    licence="annotations: BSD 3-clause; images: non-commercial research and education",
)
# MMSegmentation's and CAT-Seg's, SAN's, FreeCP's.
_VOC_TREES = ("VOCdevkit/VOC2012", "VOC2012", "PascalVOC/VOC2012")
_VOC20 = Benchmark(
    name="voc20",
    dataset="voc_2012_val_20_sem_seg",
    layouts=(
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/annotations_detectron2",
                ".png",
                f"{tree}/ImageSets/Segmentation/val.txt",
            )
            for tree in _VOC_TREES
        ),
        # CAT-Seg and SAN read every map in here, with or without a list.
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/annotations_detectron2/val",
                ".png",
                shared_images=True,
            )
            for tree in _VOC_TREES
        ),
        Layout(  # SAN's README
            "VOC2012/images_detectron2/val", ".jpg", "VOC2012/annotations_detectron2/val", ".png"
        ),
    ),
    num_images=1449,
    dataset_ids=tuple(range(1, 21)),
    sources=tuple(
        LabelMaps(
            f"{tree}/SegmentationClass", ".png", {id_: id_ - 1 for id_ in range(1, 21)}, (0, 255)
        )
        for tree in _VOC_TREES
    ),
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    licence=_FLICKR,
)
_VOC21 = Benchmark(
    name="voc21",
    dataset="voc_2012_val_21_sem_seg",
    layouts=tuple(
        Layout(
            f"{tree}/JPEGImages",
            ".jpg",
            f"{tree}/SegmentationClass",
            ".png",
            f"{tree}/ImageSets/Segmentation/val.txt",
        )
        for tree in _VOC_TREES
    ),
    num_images=1449,
    dataset_ids=tuple(range(21)),
    scored_background=True,
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    licence=_FLICKR,
)
_CONTEXT_TREES = ("VOCdevkit/VOC2010", "PascalVOC/VOC2010")
_CONTEXT_MATS = tuple(
    ContextMats(
        f"{tree}/trainval", (f"{tree}/pascalcontext_val.txt", f"{tree}/ImageSets/Main/val.txt")
    )
    for tree in _CONTEXT_TREES
)
_CONTEXT_OFFICIAL: tuple[Source, ...] = (
    *(ContextJson(f"{tree}/trainval_merged.json") for tree in _CONTEXT_TREES),
    *_CONTEXT_MATS,
)
_PCONTEXT59 = Benchmark(
    name="pcontext59",
    dataset="pcontext_59_val_sem_seg",
    layouts=(
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/annotations_detectron2/pc59_val",
                ".png",
                f"{tree}/ImageSets/SegmentationContext/val.txt",
            )
            for tree in _CONTEXT_TREES
        ),
        # CAT-Seg has no list: every map counts.
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/annotations_detectron2/pc59_val",
                ".png",
                shared_images=True,
            )
            for tree in _CONTEXT_TREES
        ),
        Layout("pcontext/val/image", ".jpg", "pcontext/val/label", ".png"),  # SAN
    ),
    num_images=5104,
    dataset_ids=PASCAL_CONTEXT_IDS,
    sources=(
        *_CONTEXT_OFFICIAL,
        *(
            LabelMaps(
                f"{tree}/SegmentationClassContext",
                ".png",
                {id_: id_ - 1 for id_ in range(1, 60)},
                (0, 255),
            )
            for tree in _CONTEXT_TREES
        ),
    ),
    source="https://www.cs.stanford.edu/~roozbeh/pascal-context",
    licence=f"annotations: none stated, ask the authors; {_FLICKR}",
)
_PCONTEXT60 = Benchmark(
    name="pcontext60",
    dataset="pcontext_60_val_sem_seg",
    layouts=(
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/SegmentationClassContext",
                ".png",
                f"{tree}/ImageSets/SegmentationContext/val.txt",
            )
            for tree in _CONTEXT_TREES
        ),
        Layout("pcontext/val/image", ".jpg", "pcontext/val/label_60", ".png"),
    ),
    num_images=5104,
    dataset_ids=(0, *PASCAL_CONTEXT_IDS),
    scored_background=True,
    ignores=False,
    # What the maps of 59 classes ignore is the background of 60.
    sources=(
        *_CONTEXT_OFFICIAL,
        *(
            LabelMaps(
                folder,
                ".png",
                {id_: id_ + 1 for id_ in range(59)},
                (255,),
                fill=0,
                names_the_set=True,
            )
            for folder in (
                *(f"{tree}/annotations_detectron2/pc59_val" for tree in _CONTEXT_TREES),
                "pcontext/val/label",
            )
        ),
    ),
    source=_PCONTEXT59.source,
    licence=_PCONTEXT59.licence,
)
_CITYSCAPES_TREES = ("cityscapes", "Cityscapes")
_CITYSCAPES = Benchmark(
    name="cityscapes",
    dataset="cityscapes_19_val_sem_seg",
    layouts=tuple(
        Layout(
            f"{tree}/leftImg8bit/val",
            "_leftImg8bit.png",
            f"{tree}/gtFine/val",
            "_gtFine_labelTrainIds.png",
        )
        for tree in _CITYSCAPES_TREES
    ),
    num_images=500,
    dataset_ids=CITYSCAPES_IDS,
    # Id 34 would be the licence plate, -1, which Cityscapes does not draw.
    sources=tuple(
        LabelMaps(
            f"{tree}/gtFine/val",
            "_gtFine_labelIds.png",
            {id_: index for index, id_ in enumerate(CITYSCAPES_IDS)},
            range(34),
        )
        for tree in _CITYSCAPES_TREES
    ),
    source="https://www.cityscapes-dataset.com",
    licence="Cityscapes' own: registration, non-commercial use",
)
_ADE_FULL = "ADE20K_2021_17_01"
_ADE20K_847 = Benchmark(
    name="ade20k_847",
    dataset="ade20k_847_val_sem_seg",
    layouts=(
        Layout(
            f"{_ADE_FULL}/images/ADE/validation",
            ".jpg",
            f"{_ADE_FULL}/annotations_847/validation",
            ".png",
        ),
        # MaskFormer's, CAT-Seg's and SAN's, whose images and maps are made smaller
        Layout(
            f"{_ADE_FULL}/images_detectron2/validation",
            ".jpg",
            f"{_ADE_FULL}/annotations_detectron2/validation",
            ".tif",
            shared_images=True,
        ),
    ),
    num_images=2000,
    dataset_ids=ADE20K_847_IDS,
    ignore_label=65535,
    in_paper=False,
    sources=(
        LabelMaps(
            f"{_ADE_FULL}/images/ADE/validation",
            "_seg.png",
            {id_: index for index, id_ in enumerate(ADE20K_847_IDS)},
            range(26 * 256),
            fill=65535,
            in_colors=True,
        ),
    ),
    source="https://groups.csail.mit.edu/vision/datasets/ADE20K/request_data/",
    licence="ADE20K's own: on request",
)
_PCONTEXT459 = Benchmark(
    name="pcontext459",
    dataset="pcontext_459_val_sem_seg",
    layouts=(
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/annotations_detectron2/pc459_val",
                ".png",
                f"{tree}/ImageSets/SegmentationContext/val.txt",
            )
            for tree in _CONTEXT_TREES
        ),
        *(
            Layout(
                f"{tree}/JPEGImages",
                ".jpg",
                f"{tree}/annotations_detectron2/pc459_val",
                ".tif",
                shared_images=True,
            )
            for tree in _CONTEXT_TREES
        ),
        Layout(
            "pcontext_full/val/image", ".jpg", "pcontext_full/val/label", ".tif", shared_images=True
        ),
    ),
    num_images=5104,
    dataset_ids=tuple(range(1, 460)),
    ignore_label=65535,
    in_paper=False,
    # The JSON of the other two is merged; CAT-Seg and SAN make theirs from the .mat files.
    sources=_CONTEXT_MATS,
    source=_PCONTEXT59.source,
    licence=_PCONTEXT59.licence,
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
            _ADE20K_847,
            _PCONTEXT459,
        )
    }
)
"""By name."""
