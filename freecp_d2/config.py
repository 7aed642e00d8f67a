"""Every config key of FreeCP, its default and its meaning."""

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from platformdirs import user_cache_path

from .clip import BASE_METHODS
from .data import Vocabulary, dataset_vocabulary, load_descriptions, load_vocabulary
from .data.benchmarks.protocols import with_protocol
from .presence import check_presence

CONFIGS: Path = Path(__file__).with_name("configs")
"""The YAML files that the library ships; in a checkout the link to configs/."""

_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(\w+)'> vs. <class '(\w+)'>\) with values \((.*) vs. (.*)\) "
    r"for config key: (\S+)"
)
log = logging.getLogger(__name__)


def add_freecp_config(cfg: CfgNode) -> None:
    """Add FreeCP's keys to a Detectron2 config, and give Detectron2's own the values CLIP needs."""
    # RGB, 0-255. The model wants this order whatever INPUT.FORMAT says about the images.
    cfg.MODEL.PIXEL_MEAN = [122.771, 116.746, 104.094]
    cfg.MODEL.PIXEL_STD = [68.501, 66.632, 70.323]
    cfg.INPUT.FORMAT = "RGB"
    # Short and long side that test images are resized to. A short side of 0: they keep their size.
    cfg.INPUT.MIN_SIZE_TEST = 448
    cfg.INPUT.MAX_SIZE_TEST = 2048
    # True: images are turned as their EXIF data say. False: they are read as they are stored, for
    # data sets whose label maps were drawn on them so.
    cfg.INPUT.EXIF_ORIENTATION = True

    # How many images of an evaluation go through the model at once; their windows are batched
    # together (MODEL.FREECP.BATCH_SIZE). More than one pays off on a GPU.
    cfg.TEST.IMS_PER_BATCH = 1
    # What an evaluation of FreeCP scores the presence of classes by, as multi-label recognition:
    # any of "consistency", "local" and "erasing" (freecp_d2.presence). (): nothing.
    cfg.TEST.PRESENCE = ()
    # True: an evaluation of FreeCP also says how separable the patch features of classes are
    # (freecp_d2.separability).
    cfg.TEST.SEPARABILITY = False

    clip = cfg.MODEL.CLIP = CfgNode()
    # The name of an open_clip ViT, or the path of an open_clip model config (JSON).
    clip.NAME = "ViT-B-16"
    # An open_clip tag, or the path of a state dict (.safetensors, or .pt which is never unpickled
    # beyond tensors).
    clip.PRETRAINED = "openai"
    # The base method: clearclip, gem, maskclip, naclip, pearl, resclip, scclip, sclip, sfp,
    # vanilla, or one of your own (docs/own_base_method.md).
    clip.METHOD = "clearclip"
    # How the last block ends: "projection" (of the attention's output, nothing else), "mlp" (then
    # the MLP with its residual), "residual" (as trained: the block's input is added, then the MLP).
    # "": as METHOD.md section 1 says, "projection" for clearclip, naclip, pearl and resclip, "mlp"
    # for maskclip, sclip and vanilla. gem, scclip and sfp have no such choice.
    clip.LAST_BLOCK = ""
    # fp32; fp16, bf16: of the weights; bf16_matmul: float32 weights whose matrix products are in
    # bfloat16 with float32 sums, on CPUs with AMX (a switch of the whole process while the encoder
    # runs); or auto: fp16 on CUDA, bf16_matmul on such CPUs, fp32 elsewhere.
    clip.PRECISION = "auto"
    # Compile the image tower for every size of windows when it first comes, in about 20 seconds: a
    # tenth faster in bf16 on a CPU, a twentieth in fp32. What is compiled is kept in
    # TORCHINDUCTOR_CACHE_DIR, by default in /tmp.
    clip.COMPILE = False
    # What runs the image tower: torch; or, on CPUs, openvino or onnxruntime (pip install
    # 'freecp_d2[export]'), compiled once for every size of windows, which takes some 15 seconds for
    # a ViT-B/16. With openvino, the PRECISIONs bf16 and bf16_matmul both mean that all is computed
    # in bfloat16; onnxruntime has fp32 alone. Base methods that read the words are refused.
    clip.ENGINE = "torch"
    # Text features are kept here, by default in the user's cache folder. "": they are encoded anew
    # at every start.
    clip.TEXT_CACHE = str(user_cache_path("freecp_d2") / "text_features")
    _add_method_options(clip)

    freecp = cfg.MODEL.FREECP = CfgNode()
    # False: the base method alone (METHOD.md section 8).
    freecp.ENABLED = True
    # How the base method alone is run. "same": with the resize, windows and words that FreeCP would
    # have. "paper": by the protocol of its own authors on the benchmark of DATASETS.TEST, or by
    # their defaults on another data set; that sets INPUT.MIN_SIZE_TEST, WINDOW, STRIDE, an empty
    # VOCABULARY, an empty MODEL.CLIP.LAST_BLOCK, and of the options of resclip and pearl those that
    # the protocol states (freecp_d2.data.benchmarks.protocols). With FreeCP enabled it means
    # nothing.
    freecp.PROTOCOL = "same"
    # What the affinity is made of: "attention", that of all blocks but the last (METHOD.md step 3),
    # or "method", the similarity that the base method itself spreads its values by.
    freecp.AFFINITY = "attention"
    # Side of the square windows in pixels of the resized image. 0: the whole image at once.
    freecp.WINDOW = 384
    # Pixels from one window to the next, at most WINDOW. 0: the whole image at once.
    freecp.STRIDE = 112
    # "sem_seg": a score for every class at every pixel, as Detectron2 expects. "label_map": labels
    # alone, without the cost of those.
    freecp.OUTPUT = "sem_seg"
    # How many windows, and how many crops of the ambiguity stage, go through CLIP at once.
    freecp.BATCH_SIZE = 16
    freecp.CROP_BATCH_SIZE = 64
    # Launch CLIP's blocks and steps 2 to 5 as CUDA graphs, one for every shape of a batch: on CUDA
    # alone, and meant for images of one size.
    freecp.COMPILE = False
    # False switches a stage off.
    freecp.REDUNDANCY = True
    freecp.AMBIGUITY = True
    # Consistency as the published code computes it ("code"), or as a true IoU, which the paper is
    # said to write ("paper", METHOD.md section 5). It is up to twice as large, and wants another
    # threshold.
    freecp.CONSISTENCY = "code"
    # Classes whose consistency is not above this are removed.
    freecp.REDUNDANCY_THRESHOLD = 0.05
    # Classes whose refined maps have at least this soft IoU compete for their place.
    freecp.AMBIGUITY_THRESHOLD = 0.7
    # True: a component's box reaches the last column and row. False, as published: a box that
    # touches the right or bottom edge loses its last column or row.
    freecp.BOX_FULL_EXTENT = False
    # Where FreeCP's affinity (METHOD.md step 3) comes from. "": CLIP. "TimmViT": the likeness of
    # features of another ViT, such as DINO. "MaskFolder": class-agnostic masks on disk, such as
    # SAM's. Others can be registered (freecp_d2.affinity.AFFINITY_PROVIDERS, docs/affinity.md).
    freecp.AFFINITY_PROVIDER = ""
    # TimmViT: the name of a ViT of timm that was trained without classes, and the path of its
    # state dict (.safetensors, or .pth, which is never unpickled beyond tensors). "": timm's own
    # weights, from the Hugging Face hub.
    freecp.AFFINITY_VIT = "vit_base_patch8_224.dino"
    freecp.AFFINITY_VIT_WEIGHTS = ""
    # As ProxyCLIP has them: cosines below BETA times their mean over the window are cut off, and
    # GAMMA times the others go through a softmax.
    freecp.AFFINITY_VIT_BETA = 1.2
    freecp.AFFINITY_VIT_GAMMA = 3.0
    # MaskFolder: the folder with the masks of every image by its name: <stem>.json (COCO's RLE),
    # <stem>.png (a label map) or <stem>/ (a PNG a mask); see freecp_d2.affinity.read_masks.
    freecp.AFFINITY_MASKS = ""
    # What follows the images (docs/adapters.md). "": nothing. "clip_ot", "bafta": class features
    # that are moved by the regions of classes that stay, in the order of the images.
    # "entropy_weights": several views of each image, averaged by how certain CLIP is. Others can be
    # registered (freecp_d2.adapters.ADAPTERS).
    freecp.ADAPTER = ""
    ot = freecp.CLIP_OT = CfgNode()
    # Share of an even marginal among classes, from 0 (regions go by their softmax) to 1 (the
    # paper's: every class has as many regions), and how far a class is moved, of its unit length.
    ot.KAPPA = 0.1
    ot.ETA = 0.2
    bafta = freecp.BAFTA = CfgNode()
    # How many regions the text of a class counts as. Regions that CLIP is no more certain of than
    # CERTAINTY, from 0 to 1, do not count.
    bafta.PRIOR = 50.0
    bafta.CERTAINTY = 0.5
    entropy = freecp.ENTROPY_WEIGHTS = CfgNode()
    # Each window also as its mirror image; the image also at these scales; the 80 templates in so
    # many sets, each a view.
    entropy.FLIP = True
    entropy.SCALES = ()
    entropy.TEMPLATE_SETS = 1
    # What becomes of the maps at the image's original size, by the image, before labels are taken:
    # with purification of the maps of the classes that stay, and of all queries' under a base
    # method alone with PROTOCOL "same". "none". "pamr": pixel-adaptive refinement, as NACLIP has
    # it. "tlp": text-aware propagation, as PEARL has it (METHOD.md section 8).
    freecp.REFINE = "none"
    pamr = freecp.PAMR = CfgNode()
    # How often every pixel takes the mean of its neighbours of like colour, and how many pixels
    # away these are.
    pamr.STEPS = 10
    pamr.DILATIONS = (8, 16)
    tlp = freecp.TLP = CfgNode()
    # Cells of about H / GRID by W / GRID pixels are handled as one.
    tlp.GRID = 80
    # Class -> sentences about it, read by the ambiguity stage: JSON, or a Python module of one dict
    # literal, which is not run (see freecp_d2.data.load_descriptions). "": the templates.
    freecp.DESCRIPTIONS = ""
    # A file of class names (see freecp_d2.data.load_vocabulary) in place of the data set's own.
    freecp.VOCABULARY = ""
    # "auto": the background's names are words that CLIP chooses for the classes from a lexicon, in
    # place of the vocabulary's; "random": as many of the same lexicon by chance, as a control.
    freecp.BACKGROUND = ""
    background = freecp.BACKGROUND_WORDS = CfgNode()
    # What the lexicon is made of (freecp_d2.data.lexicon), and how many of its words are chosen.
    background.LEXICON = ("coco_stuff", "ade20k")
    background.COUNT = 64
    # Words are left out whose cosine to a name of a class is at least this.
    background.MAX_SIMILARITY = 0.9
    # auto: how much a word counts less that is like one that is chosen.
    background.PENALTY = 0.5
    # random: its seed.
    background.SEED = 0
    # JSON {class: {class: "part" or "together"}}: these never compete in the ambiguity stage,
    # however much their maps overlap (freecp_d2.relations). "": any may.
    freecp.RELATIONS = ""
    # Makes the template features of different classes less alike (freecp_d2.decorrelation): 0, as
    # CLIP has them, to 1, orthogonal.
    freecp.DECORRELATION = 0.0
    # A class of several names: those do not count in an image whose probability among them, by the
    # class's region, is at most this (freecp_d2.synonyms). 0: all do. The paper's is 0.1.
    freecp.SYNONYM_THRESHOLD = 0.0
    # The base method alone under PROTOCOL "same", with a scored background: pixels whose best
    # probability is below this are background.
    freecp.BACKGROUND_THRESHOLD = 0.5


def _add_method_options(clip: CfgNode) -> None:
    """MODEL.CLIP.<METHOD>: the options of the base methods, of those of other people too."""
    gem = clip.GEM = CfgNode()
    # How many of the last blocks the second stream spans, plus one (METHOD.md section 1).
    gem.DEPTH = 7
    # True: GEM's affinity averages all heads. False, as published: head 0 alone.
    gem.HEAD_AVERAGE = False

    naclip = clip.NACLIP = CfgNode()
    # Standard deviation of the neighbourhood, in patches.
    naclip.GAUSSIAN_STD = 5.0
    # "naclip"; or its authors' ablations: "nonly", the neighbourhood alone; "kk", the keys alone.
    naclip.ATTN_STRATEGY = "naclip"

    # Blocks are counted from 0. The defaults are for the 12 blocks of a ViT-B/16; a block may be
    # any but the last. For the 24 of ViT-L/14, SC-CLIP's authors had 16, 6, 8, 19 and RES_CLS 0.1.
    scclip = clip.SCCLIP = CfgNode()
    # Whose patches say which are similar, for the first means and for the last block's attention.
    scclip.PRE_ADJUST_IDX = 8
    # Whose patches say which are similar for the means of what the last block gives.
    scclip.POST_ADJUST_IDX = 3
    # The last block also attends to the sum of the outputs of blocks from START to END - 1.
    scclip.MULTI_START_IDX = 3
    scclip.MULTI_END_IDX = 10
    # Share of the CLS token that is added to every patch.
    scclip.RES_CLS = 0.3

    # SFP as released, which is less than its paper: SC-CLIP with other outliers and other attention
    # (METHOD.md section 1).
    sfp = clip.SFP = CfgNode()
    # How outliers are found. "SOM": by what the CLS token attends to in the last block but one.
    # "L2": by their norm. "LOF": as SC-CLIP finds them.
    sfp.PM = "SOM"
    # False: there are no outliers, and no patch is repaired.
    sfp.PURIFY = True
    # As SC-CLIP's; CROSS_S and CROSS_E are its MULTI_START_IDX and MULTI_END_IDX.
    sfp.PRE_ADJUST_IDX = 8
    sfp.POST_ADJUST_IDX = 3
    sfp.CROSS_S = 3
    sfp.CROSS_E = 10
    sfp.RES_CLS = 0.3

    pearl = clip.PEARL = CfgNode()
    # Weight of the key-key part of the attention's logits, and False: without it.
    pearl.ALPHA_KK = 0.08
    pearl.USE_KK = True
    # How keys are turned towards queries: "polar", Newton-Schulz, as published; "svd", exactly.
    pearl.ALIGN_SOLVER = "polar"
    # Steps of "polar". More of them come nearer to "svd"; with 20 rounding shows.
    pearl.POLAR_ITERS = 5

    resclip = clip.RESCLIP = CfgNode()
    # The attention that is mixed with that of blocks before: "resclip" (NACLIP's), "clearclip",
    # "vanilla", or "sclip", which ends the block with the residual and the MLP.
    resclip.ATTN_STRATEGY = "resclip"
    # Standard deviation of the neighbourhood of "resclip" and of SFR's smoothing, in patches.
    resclip.GAUSSIAN_STD = 5.0
    # The blocks before, counted from 0; as published these four, of ViT-L's 24 as well.
    resclip.RCS_BLOCKS = (5, 6, 7, 8)
    # What the mixture is multiplied by, and their share of it.
    resclip.ATTN_RCS_WEIGHTS = (2.0, 0.3)
    # True: semantic feedback (SFR). Every window is segmented by all words with PAMR, and read a
    # second time by the labels; the features depend on the words.
    resclip.USE_SFR = False
    # What the logits are multiplied by in the second reading, and the labels' share of them.
    resclip.ATTN_SFR_WEIGHTS = (2.1, 0.7)
    # Pixels whose best word has less than this probability count as the first word's in SFR.
    resclip.TEMP_THD = 0.25
    # True: patches of one label count less where the way between them leaves it.
    resclip.DELETE_SAME_ENTITY = True
    # What cosine similarities are multiplied by for SFR's labels.
    resclip.LOGIT_SCALE = 40.0

    for name, method in BASE_METHODS:
        options = {k.upper(): v for k, v in method.options().items() if k != "last_block"}
        if options and name.upper() not in clip:
            clip[name.upper()] = CfgNode(options)


def configured_vocabulary(cfg: CfgNode) -> Vocabulary:
    """The classes of a config: of MODEL.FREECP.VOCABULARY, or else of DATASETS.TEST.

    Raises:
        ValueError: neither is set, or the data sets differ in their classes.
    """
    if cfg.MODEL.FREECP.VOCABULARY:
        return load_vocabulary(cfg.MODEL.FREECP.VOCABULARY)
    if not cfg.DATASETS.TEST:
        raise ValueError("no classes: set MODEL.FREECP.VOCABULARY to a file, or DATASETS.TEST")
    vocabularies = [dataset_vocabulary(MetadataCatalog.get(name)) for name in cfg.DATASETS.TEST]
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
        raise ValueError(
            f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)} differ in their classes; evaluate them one "
            "by one"
        )
    return vocabularies[0]


def configured_descriptions(cfg: CfgNode) -> Mapping[str, Sequence[str]]:
    """Class -> sentences, of MODEL.FREECP.DESCRIPTIONS; nothing where it is empty.

    Raises:
        FileNotFoundError, ValueError: as :func:`freecp_d2.data.load_descriptions`.
    """
    file = cfg.MODEL.FREECP.DESCRIPTIONS
    return load_descriptions(file) if file else {}


def list_configs() -> list[str]:
    """The names that :func:`get_config` takes, such as "coco_stuff164k/clearclip", sorted."""
    files = (file for file in CONFIGS.glob("*/*.yaml") if file.name != "base.yaml")
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in files)


def get_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """The frozen config that the library ships under a name, wherever it is called from.

    Args:
        name: one of :func:`list_configs`.
        opts: as :func:`load_config` takes them; errors are those, too.

    Raises:
        FileNotFoundError: there is no such name.
    """
    return load_config(_shipped(name), opts)


def load_config(config_file: str | os.PathLike, opts: Sequence[str] = ()) -> CfgNode:
    """The frozen config of a command line, on the CPU where it asks for CUDA and there is none.

    The protocol of a base method alone is written into it
    (:func:`freecp_d2.data.benchmarks.protocols.with_protocol`).

    Nothing in the file, or in the files of its `_BASE_`, is run: Detectron2's own
    `merge_from_file` would build whatever Python object a YAML tag names.

    Args:
        config_file: a YAML file, which ends in .yaml or .yml; or a name of :func:`list_configs`.
        opts: KEY VALUE pairs that override the file.

    Raises:
        FileNotFoundError: there is no such file or name.
        ValueError: it is no config, or a pair is none; or MODEL.WEIGHTS is set; see also
            :func:`choose_device`.
    """
    file = config_path(config_file)
    cfg = get_cfg()
    add_freecp_config(cfg)
    merge_safely(cfg, str(file))
    return finished_config(cfg, opts)


def config_path(config_file: str | os.PathLike) -> Path:
    """The YAML file that :func:`load_config` reads.

    Raises:
        FileNotFoundError: there is no such file or name.
    """
    file = Path(config_file)
    if file.suffix not in (".yaml", ".yml"):
        file = _shipped(os.fspath(config_file))
    if not file.is_file():
        raise FileNotFoundError(f"config {config_file}: no such file; check the path")
    return file


def _shipped(name: str) -> Path:
    file = CONFIGS / f"{name}.yaml"
    if not file.is_file():
        known = list_configs()
        raise FileNotFoundError(
            f"config {name!r}: no such name; choose one of "
            f"{', '.join(difflib.get_close_matches(name, known) or known)}, or the path of a file "
            "that ends in .yaml"
        )
    return file


def merge_safely(cfg: CfgNode, config_file: str) -> None:
    """Merge a YAML file and the files of its `_BASE_`; a Python object in one of them is refused.

    Raises:
        ValueError: one of them is no YAML of plain values, or has a key or type that `cfg` has not.
    """
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except yaml.MarkedYAMLError as error:
        mark, why = error.problem_mark or error.context_mark, _one_line(error.problem)
        if isinstance(error, yaml.constructor.ConstructorError) and "tag" in why:
            why += "; a config holds plain values, and a Python object in it is never built"
        if mark:
            base = "" if mark.name == config_file else f", its _BASE_ {mark.name}"
            config_file = f"{config_file}{base}, line {mark.line + 1}"
        raise ValueError(f"config {config_file}: {why}; correct it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = _one_line(error)
        raise ValueError(f"config {config_file}: not YAML ({why}); correct it") from None
    except RecursionError:
        raise ValueError(
            f"config {config_file}: its _BASE_ leads back to itself, or it is nested too deeply; "
            "correct it"
        ) from None
    except FileNotFoundError as error:
        raise ValueError(
            f"config {config_file}: its _BASE_ {error.filename} is not there; correct it"
        ) from None
    except (AttributeError, TypeError) as error:  # what is no mapping, wherever it is
        raise ValueError(
            f"config {config_file}: not a mapping of keys to values, or its _BASE_ is not "
            f"({_one_line(error)}); correct it"
        ) from error
    except (AssertionError, KeyError, ValueError) as error:  # yacs: an unknown key, another type
        raise ValueError(f"config {config_file}: {_of_yacs(error)}; correct it") from error


def finished_config(cfg: CfgNode, opts: Sequence[str] = ()) -> CfgNode:
    """A frozen copy of `cfg` with overrides, as :func:`load_config` gives it.

    Raises:
        ValueError: a pair that is none, an unknown key or another type; or MODEL.WEIGHTS is set.
    """
    cfg = cfg.clone()
    cfg.defrost()
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"config override: {_of_yacs(error)}; give KEY VALUE pairs") from error
    if cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, which FreeCP would not read: it has no "
            "weights of its own; CLIP's are MODEL.CLIP.PRETRAINED"
        )
    check_values(cfg)
    choose_device(cfg)
    cfg.freeze()
    return with_protocol(cfg)


def check_values(cfg: CfgNode) -> None:
    """What a config's types do not say, and nobody says before hours of work are done.

    Raises:
        ValueError: a key is None that has a default; MODEL.META_ARCHITECTURE is not registered,
            DATALOADER.NUM_WORKERS negative, TEST.IMS_PER_BATCH below 1, TEST.PRESENCE or
            TEST.SEPARABILITY not to be had, OUTPUT_DIR empty, or TEST.EXPECTED_RESULTS no list of
            [task, metric, value, tolerance], or of several data sets.
    """
    defaults = get_cfg()
    add_freecp_config(defaults)
    defaults.MODEL.META_ARCHITECTURE = "FreeCP"
    _refuse_none(cfg, defaults)
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name!r}, which nothing has registered; choose FreeCP"
        )
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}; it must be at least 0"
        )
    if cfg.TEST.IMS_PER_BATCH < 1:
        raise ValueError(f"TEST.IMS_PER_BATCH is {cfg.TEST.IMS_PER_BATCH}; it must be at least 1")
    check_presence(cfg.TEST.PRESENCE, cfg.MODEL.FREECP.ENABLED)
    if cfg.TEST.SEPARABILITY and not cfg.MODEL.FREECP.ENABLED:
        raise ValueError(
            "TEST.SEPARABILITY compares FreeCP with its base method; set MODEL.FREECP.ENABLED True"
        )
    if not cfg.OUTPUT_DIR.strip():
        raise ValueError("OUTPUT_DIR is empty; name a folder")
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) > 1:
        raise ValueError(
            "TEST.EXPECTED_RESULTS are of one data set, and DATASETS.TEST has "
            f"{len(cfg.DATASETS.TEST)}; evaluate them one by one"
        )
    for expected in cfg.TEST.EXPECTED_RESULTS:
        if (
            not isinstance(expected, list | tuple)
            or [*map(type, expected[:2])] != [str, str]
            or (len(expected) != 4 or not all(isinstance(n, int | float) for n in expected[2:]))
        ):
            raise ValueError(
                f"TEST.EXPECTED_RESULTS has {expected!r}; give [task, metric, value, tolerance], "
                "such as ['sem_seg', 'mIoU', 26.1, 0.1]"
            )


def _refuse_none(cfg: CfgNode, defaults: CfgNode, prefix: str = "") -> None:
    for key, default in defaults.items():
        value = cfg.get(key)
        if isinstance(default, CfgNode) and isinstance(value, CfgNode):
            _refuse_none(value, default, f"{prefix}{key}.")
        elif key in cfg and value is None and default is not None:
            raise ValueError(f"{prefix}{key} is None; give a value such as {default!r}")


def choose_device(cfg: CfgNode) -> None:
    """Make MODEL.DEVICE, "cuda" or "cuda:1", "cpu" where torch finds no CUDA device, and say so.

    Raises:
        ValueError: it is no device, or a CUDA device of a higher number than this machine has.
    """
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; choose cpu, cuda, or cuda:1 for the second"
        ) from None
    if device.type != "cuda":
        try:
            torch.empty(0, device=device)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, which torch does not have here "
                f"({_one_line(error)[:80]}); choose cpu or cuda"
            ) from None
        return
    if not torch.cuda.is_available():
        log.warning("No CUDA device found: MODEL.DEVICE is cpu, not %s", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    elif (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"MODEL.DEVICE is {device}; this machine has {count}, counted from 0")


def _of_yacs(error: Exception) -> str:
    """What yacs says of a key or a value, in fewer words where it is about a type."""
    said = _one_line(error.args[0])
    match = _TYPE_MISMATCH.fullmatch(said)
    if match is None:
        return said
    wanted, given, default, value, key = match.groups()
    return f"{key} is {value}, of type {given}; it takes {wanted}, such as {default!s}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
