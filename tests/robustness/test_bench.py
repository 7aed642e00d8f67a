import numpy as np
import pytest
import torch

from freecp_d2 import load_config
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import CLASSES, DESCRIPTIONS, draw_scene
from freecp_d2.robustness.bench import Bench
from freecp_d2.robustness.settings import Setting
from freecp_d2.segmenter import build_model

NAMES = ("sky", "lawn", "sand", "sea", "road", "mountain", "house", "tree", "river", "person")
IDS = [CLASSES.index(name) for name in NAMES]
WORDS = ("banjo", "toaster", "wolf", "ladder")
K = len(CLASSES)
REREAD = (
    *("MODEL.CLIP.METHOD", "resclip", "MODEL.CLIP.RESCLIP.USE_SFR", "True"),
    *("MODEL.CLIP.RESCLIP.RCS_BLOCKS", "(2, 3, 4)"),
)


@pytest.fixture(scope="module")
def models():
    """Ends of a config -> a model."""
    built = {}

    def get(*opts):
        if opts not in built:
            built[opts] = build_model(
                load_config("scenes/clearclip", ["MODEL.DEVICE", "cpu", *opts])
            )
        return built[opts]

    return get


@pytest.fixture(scope="module")
def scene():
    drawn = draw_scene(1)
    image = torch.from_numpy(drawn.image.transpose(2, 0, 1).copy())
    return {"file_name": "scene.png", "image": image}, torch.from_numpy(drawn.labels)


def settings(background=()):
    official = tuple((name,) for name in NAMES)
    more = (*official, *((word,) for word in WORDS))
    lower = (("blue sky",), ("turf",), *official[2:])
    return [
        Setting("official", Vocabulary(official, background)),
        Setting("plain", Vocabulary(lower, background)),
        Setting("oracle", Vocabulary(official, background)),
        Setting("near", Vocabulary(more, background), len(WORDS)),
    ]


def counted(labels, truth, ids):
    """{(predicted, true): pixels} by positions in `ids`, the distractors' last."""
    table = {}
    for p, t in zip(labels.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if t in ids:
            table[p, ids.index(t)] = table.get((p, ids.index(t)), 0) + 1
    return table


def cells_of(recorded):
    return {(row, column): n for row, column, n in zip(*recorded, strict=True)}


def expected_labels(model, image, words, base):
    if base:
        return model.segment_base(model.encode([image], base=True), words, "label_map")[0]
    return model.segment(model.encode([image]), words, output="label_map")[0]


@pytest.mark.parametrize(
    ("opts", "background"),
    [
        ((), ()),
        ((), ("background", "wall")),
        (("MODEL.FREECP.WINDOW", "0"), ()),  # 288 x 224 are whole patches
        (("MODEL.FREECP.WINDOW", "200"), ()),  # which the base method pads
        (("MODEL.FREECP.DECORRELATION", "0.5"), ()),
        (("MODEL.FREECP.ADAPTER", "entropy_weights"), ()),  # views that the base method has not
        (REREAD, ()),  # whose features depend on the words
    ],
)
def test_every_setting_is_what_the_model_makes_of_its_vocabulary_alone(
    models, scene, opts, background
):
    model = models(*opts)
    image, truth = scene
    first = int(bool(background))
    # With a background the label map's first class takes its place.
    ids = [*([K - 1] * first), *IDS]
    bench = Bench(model, settings(background), DESCRIPTIONS, ids, K, 255)
    record = bench.of_image(image, truth)
    present = [c for c, id_ in enumerate(IDS) if (truth == id_).any()]
    assert 0 < len(present) < len(NAMES)
    for setting, result in zip(settings(background), record.values(), strict=True):
        vocabulary = setting.vocabulary
        channel = np.arange(len(vocabulary.class_names))
        if setting.kind == "oracle":
            vocabulary = Vocabulary(tuple(vocabulary.classes[c] for c in present), background)
            channel = np.array([*range(first), *(first + c for c in present)])
        channel = channel.clip(max=len(ids))
        sentences = {n: DESCRIPTIONS[n] for n in vocabulary.queries if n in DESCRIPTIONS}
        words = model.encode_words(vocabulary, sentences)
        for method in ("base", "freecp"):
            expected = expected_labels(model, image, words, method == "base")
            labels = channel[expected["label_map"].numpy()]
            assert cells_of(result[method]) == counted(labels, truth, ids)
        if setting.distractors:
            flags = [expected[stage][-len(WORDS) :] for stage in ("kept_redundancy", "kept")]
            assert result["left"] == [int(flag.sum()) for flag in flags]
        else:
            assert result["left"] == []


def test_pixels_of_other_classes_and_ignored_ones_do_not_count(models, scene):
    image, truth = scene
    ignored = truth.clone()
    ignored[:100] = 255
    record = Bench(models(), settings()[:1], DESCRIPTIONS, IDS, K, 255).of_image(image, ignored)
    wanted = sum(int((ignored == id_).sum()) for id_ in IDS)
    assert 0 < wanted < int((ignored != 255).sum())
    for method in ("base", "freecp"):
        assert sum(record["official"][method][2]) == wanted


def test_an_oracle_of_nothing_has_nothing_but_background(models, scene):
    image, truth = scene
    asked = settings(("background",))[2:3]
    nothing = torch.full_like(truth, K - 1)
    record = Bench(models(), asked, DESCRIPTIONS, [K - 1, *IDS], K, 255).of_image(image, nothing)
    assert record["oracle"]["base"] == record["oracle"]["freecp"] == [[0], [0], [truth.numel()]]
    nothing = torch.full_like(truth, 255)
    record = Bench(models(), settings()[2:3], DESCRIPTIONS, IDS, K, 255).of_image(image, nothing)
    assert record["oracle"]["base"] == record["oracle"]["freecp"] == [[], [], []]


@pytest.mark.parametrize("id_", [K, 77])
def test_an_id_that_is_no_class_is_named(models, scene, id_):
    image, truth = scene
    broken = truth.clone()
    broken[5, 5] = id_
    bench = Bench(models(), settings()[:1], DESCRIPTIONS, IDS, K, 255)
    with pytest.raises(ValueError, match=f"scene.png: id {id_} of the ground truth is no class"):
        bench.of_image(image, broken)


def test_a_label_map_of_another_size_is_named(models, scene):
    image, truth = scene
    bench = Bench(models(), settings()[:1], DESCRIPTIONS, IDS, K, 255)
    with pytest.raises(ValueError, match="scene.png: its label map has"):
        bench.of_image(image, truth[1:])
