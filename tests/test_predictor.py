"""FreeCPPredictor against the meta-architecture it stands on, and beside other code."""

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2 import FreeCP, FreeCPPredictor, Segmentation
from freecp_d2.data import Vocabulary, load_descriptions
from freecp_d2.data.scenes.classes import CLASSES
from freecp_d2.data.scenes.scene import draw_scene

OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
WORDS = ["sky", "lawn", "road", "sand", "mushroom", "meadow"]
DEFAULT_BACKGROUND = (
    "sky wall tree wood grass road sea river mountain sands desk bed building cloud lamp door "
    "window wardrobe ceiling shelf curtain stair floor hill rail fence"
).split()


@pytest.fixture(scope="module")
def predictor() -> FreeCPPredictor:
    return FreeCPPredictor("scenes/clearclip", OPTS)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw_scene(87).image


def model_of(predictor: FreeCPPredictor, vocabulary: Vocabulary, *opts: object) -> FreeCP:
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(["MODEL.FREECP.OUTPUT", "sem_seg", *opts])
    model = FreeCP(cfg, vocabulary=vocabulary).eval()
    model.set_vocabulary(vocabulary, load_descriptions(cfg.MODEL.FREECP.DESCRIPTIONS))
    return model


def sem_seg_of(model: FreeCP, image: np.ndarray) -> dict:
    return model([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("background", [(), ("wall", "mountain")])
def test_it_gives_what_the_model_gives(predictor, image, enabled, background):
    words = Vocabulary((("sky",), ("lawn", "meadow"), ("road",), ("mushroom",)), background)
    whole = sem_seg_of(model_of(predictor, words, "MODEL.FREECP.ENABLED", enabled), image)
    own = predictor if enabled else predictor.base
    result = own(image, [["sky"], ["lawn", "meadow"], "road", "mushroom"], list(background))
    sem_seg = whole["sem_seg"]
    labels = sem_seg.argmax(0).masked_fill(sem_seg.amax(0) == 0, result.nothing)
    assert torch.equal(torch.from_numpy(result.label_map), labels)
    np.testing.assert_allclose(result.scores, sem_seg.amax((1, 2)), atol=1e-6)
    assert result.class_names == ("background",) * bool(background) + (
        "sky",
        "lawn",
        "road",
        "mushroom",
    )
    counts = [(result.label_map == i).mean() for i in range(len(result.class_names))]
    np.testing.assert_allclose(result.shares, counts)
    if enabled:
        first = len(result.class_names) - 4
        np.testing.assert_allclose(result.consistency[first:], whole["consistency"], atol=1e-6)
        gone = {r.name for r in result.removed}
        assert gone == {n[0] for n, k in zip(words.classes, whole["kept"], strict=True) if not k}
    else:
        assert result.removed == [] and np.isnan(result.consistency).all()


def test_removed_classes_say_why(predictor, image):
    encoded = predictor.encode(image)
    strict = predictor.segment(encoded, WORDS, redundancy_threshold=1.0)
    assert [r.name for r in strict.removed] == WORDS
    assert {r.stage for r in strict.removed} == {"redundancy"}
    words = list(CLASSES[:20])
    loose = predictor.segment(encoded, words, redundancy_threshold=0.0, ambiguity_threshold=0.5)
    beaten = [r for r in loose.removed if r.stage == "ambiguity"]
    assert beaten and all(r.consistency == 0 for r in loose.removed if r not in beaten)
    gone = {r.name for r in loose.removed}
    for r in beaten:
        assert r.beaten_by in set(words) - gone
        assert r.consistency == pytest.approx(loose.consistency[words.index(r.name)])
    assert not gone & {loose.class_names[i] for i in np.unique(loose.label_map)}


def test_segment_of_an_encoded_image_is_the_call(predictor, image, monkeypatch):
    encoded = predictor.encode(image)
    calls = []
    encode = predictor._segmenter.model.encoder.forward
    monkeypatch.setattr(
        predictor._segmenter.model.encoder, "forward", lambda x: calls.append(x) or encode(x)
    )
    changed = predictor.segment(encoded, WORDS, redundancy_threshold=0.3)
    again = predictor.segment(encoded, WORDS)
    assert not calls
    whole = predictor(image, WORDS)
    assert calls
    assert np.array_equal(again.label_map, whole.label_map)
    assert np.array_equal(again.consistency, whole.consistency)
    assert len(changed.removed) > len(whole.removed)


def test_threads_with_words_of_their_own_share_the_model(predictor, image):
    """Eight at once, each with another vocabulary: the same bits as one after the other."""
    words = ["sky", "lawn", "road", "sand", "river", "mountain", "snow", "rock", "tree", "dog"]
    vocabularies = [words[i : i + 3] for i in range(8)]

    def both(vocabulary: list[str]) -> list[np.ndarray]:
        one = predictor(image, vocabulary, background=len(vocabulary[0]) > 4)
        return [one.label_map, one.scores, predictor.base(image, vocabulary).label_map]

    one_by_one = [both(vocabulary) for vocabulary in vocabularies]
    predictor.forget(predictor.prepare(words, len(words[0]) > 4) for words in vocabularies)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(both, vocabularies))
    for results, expected in zip(together, one_by_one, strict=True):
        for result, want in zip(results, expected, strict=True):
            assert np.array_equal(result, want)


def test_text_is_encoded_once_a_vocabulary(predictor, image, monkeypatch):
    texts = []
    encode = predictor._segmenter.model.encoder.model.encode_text
    monkeypatch.setattr(
        predictor._segmenter.model.encoder.model,
        "encode_text",
        lambda x, *a, **k: texts.append(len(x)) or encode(x, *a, **k),
    )
    first = predictor(image, ["sea", "snow"])
    count = len(texts)
    other = predictor(image, ["carpet", "snow", "sky"], background=["wall"])
    assert len(texts) > count > 0
    count = len(texts)
    predictor.base(image, ["carpet", "snow", "sky"], background=["wall"])
    again = predictor(image, ("sea", "snow"))
    assert len(texts) == count
    assert np.array_equal(first.label_map, again.label_map) and len(other.class_names) == 4


def test_background_is_26_words_but_the_classes(predictor):
    assert list(predictor.prepare(["dog"], True).background) == DEFAULT_BACKGROUND
    without = [name for name in DEFAULT_BACKGROUND if name not in ("sky", "wall")]
    assert list(predictor.prepare(["Sky", ["stone", "wall"]], True).background) == without
    own = Vocabulary((("dog",),), ("lawn",))
    assert predictor.prepare(own, True) == predictor.prepare(own) == own


def test_kinds_of_images(predictor, image, tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(image).save(path)
    want = predictor(image, WORDS)
    for same in (path, str(path), Image.open(path), Image.open(path).convert("RGBA")):
        got = predictor(same, WORDS)
        assert np.array_equal(got.image, image) and np.array_equal(got.label_map, want.label_map)
    gray = predictor(Image.fromarray(image).convert("L"), WORDS)
    assert gray.image.shape == image.shape and (gray.image[..., :1] == gray.image).all()


def test_exif_orientation(predictor, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = tmp_path / "turned.png"
    Image.fromarray(np.rot90(image)).save(turned, exif=exif)
    with Image.open(turned) as opened:
        for same in (turned, opened):
            assert np.array_equal(predictor(same, WORDS).image, image)


def test_exif_orientation_is_switched_off(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(image))
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    predictor = FreeCPPredictor("scenes/clearclip", [*OPTS, "INPUT.EXIF_ORIENTATION", "False"])
    with Image.open(tmp_path / "turned.png") as opened:
        for same in (tmp_path / "turned.png", opened):
            assert np.array_equal(predictor.encode(same).image, stored)


def test_images_of_low_bits_are_seen(predictor, tmp_path):
    """12 bits in 16: grey as a file and as a PIL image, colours as a file; they were black."""
    values = np.linspace(0, 4095, 40 * 50).astype(np.uint16).reshape(40, 50)
    want = np.repeat((values >> 4).astype(np.uint8)[:, :, None], 3, axis=2)
    gray, colors = str(tmp_path / "gray.png"), str(tmp_path / "colors.png")
    cv2.imwrite(gray, values)
    cv2.imwrite(colors, np.stack([values] * 3, axis=2))
    with Image.open(gray) as opened:
        for same in (gray, colors, opened):
            assert np.array_equal(predictor.encode(same).image, want)
    with Image.open(colors) as opened, pytest.raises(ValueError, match="give the path"):
        predictor.encode(opened)
    floats = Image.fromarray(values.astype(np.float32))
    with pytest.raises(ValueError, match="a PIL image that cannot be read .*floats"):
        predictor.encode(floats)


def test_tensors_go_to_numpy_by_the_cpu(predictor, image, monkeypatch):
    """What CUDA enforces: here a tensor says whether it came from `.cpu()`."""
    cpu, numpy = torch.Tensor.cpu, torch.Tensor.numpy
    asked = []

    def to_cpu(tensor, *args, **kwargs):
        copy = cpu(tensor, *args, **kwargs).view_as(tensor)
        copy.came_from_cpu = True
        return copy

    def to_numpy(tensor, *args, **kwargs):
        caller = Path(inspect.stack()[1].filename)
        if caller.name in ("predictor.py", "segmentation.py"):
            assert hasattr(tensor, "came_from_cpu"), f"{caller}: .cpu() is missing"
            asked.append(caller.name)
        return numpy(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cpu", to_cpu)
    monkeypatch.setattr(torch.Tensor, "numpy", to_numpy)
    monkeypatch.setattr(torch.Tensor, "__array__", lambda *_: pytest.fail("an implicit .numpy()"))
    result = predictor(image, WORDS)
    result.draw()
    predictor.class_maps(predictor.encode(image), ["sky"], WORDS)
    predictor.base(image, WORDS).draw()
    assert len(asked) >= 7


def test_lists_and_generators(predictor, image):
    small = image[:70, :90]
    one, two = predictor([image, small], WORDS)
    assert one.label_map.shape == image.shape[:2] and two.label_map.shape == (70, 90)
    taken = []
    lazy = predictor((taken.append(x) or x for x in (small, image)), WORDS)
    assert not taken
    first = next(lazy)
    assert len(taken) == 1 and np.array_equal(first.label_map, two.label_map)
    assert isinstance(next(lazy), Segmentation) and list(lazy) == []
    assert predictor([], WORDS) == []


def test_vocabulary_of_a_file_and_of_the_config(predictor, tmp_path, monkeypatch):
    file = tmp_path / "words.txt"
    file.write_text("sky\nlawn, meadow\n")
    assert predictor.prepare(file) == Vocabulary((("sky",), ("lawn", "meadow")))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert predictor.prepare("~/words.txt") == predictor.prepare(file)
    assert len(predictor.prepare().classes) == 41


def test_resized_for_clip_and_back(image):
    predictor = FreeCPPredictor("scenes/clearclip", [*OPTS, "INPUT.MIN_SIZE_TEST", "112"])
    encoded = predictor.encode(image)
    assert tuple(encoded.source["image"].shape) == (3, 112, 144)
    assert predictor.segment(encoded, WORDS).label_map.shape == image.shape[:2]
    assert predictor.class_maps(encoded, ["sky"], WORDS).refined.shape == (1, 112, 144)


def test_bgr_config_sees_the_same_colours(predictor, image):
    bgr = FreeCPPredictor("scenes/clearclip", [*OPTS, "INPUT.FORMAT", "BGR"])
    assert np.array_equal(bgr(image, WORDS).label_map, predictor(image, WORDS).label_map)


def test_class_maps_are_the_heads(predictor, image):
    """One window: the means are that window's maps, resampled."""
    small = image[:224, :224]
    words = Vocabulary((("sky",), ("lawn", "meadow"), ("road",)), ("wall",))
    encoded = predictor.encode(small)
    maps = predictor.class_maps(encoded, ["road", "lawn"], words)
    (batch,) = encoded.windows.batches
    model = model_of(predictor, words)
    model.head.num_background = 1
    text, descriptions = model.words.text, model.words.descriptions
    purified = model.head(batch.pixels, batch.features, text, descriptions, model.encoder)
    for got, want in (
        (maps.activation, purified.probabilities[0, 1:]),
        (maps.refined, purified.refined[0]),
    ):
        want = torch.stack([want[3], torch.maximum(want[1], want[2])])
        want = torch.nn.functional.interpolate(want[None], (224, 224), mode="bilinear")[0]
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert maps.names == ("road", "lawn")


def test_class_maps_of_nan_are_an_error(predictor, image):
    encoded = predictor.encode(image)
    encoded.windows.batches[0].features.patches[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in the patch features"):
        predictor.class_maps(encoded, ["sky"], WORDS)


def test_pictures_have_the_images_size(predictor, image):
    result = predictor(image, [*WORDS, "$5 and $$x"], background=True)
    assert len(np.unique(result.colors, axis=0)) == len(result.class_names)
    drawn = result.draw()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert not np.array_equal(drawn, image)
    assert result.draw(scale=2).shape == (448, 576, 3)
    assert predictor(image[:1, :1], WORDS).draw().shape == (1, 1, 3)


def test_nothing_outside_changes(image):
    def state() -> tuple:
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            sorted(DatasetCatalog.list()),
            sorted(MetadataCatalog.list()),
            {k: str(v) for k, v in matplotlib.rcParams.items()},
            matplotlib.get_backend(auto_select=False),
        )

    before = state()
    predictor = FreeCPPredictor("scenes/clearclip", OPTS)
    predictor(image, WORDS, background=True).draw()
    predictor.base(image, WORDS)
    assert state() == before
    weight = torch.ones(2, requires_grad=True)
    lazy = predictor((x for x in [image, image]), WORDS)
    next(lazy)
    weight.sum().backward()  # gradients are recorded while a generator waits
    assert weight.grad.tolist() == [1, 1]


def test_base_shares_the_weights_and_leaves_the_predictor_alone(predictor, image):
    want = predictor(image, WORDS)
    base = predictor.base
    assert base._segmenter is predictor._segmenter and base.base is base
    assert base.encode(image).base and not predictor.encode(image).base
    assert np.array_equal(
        base.segment(base.encode(image), WORDS).label_map, base(image, WORDS).label_map
    )
    again = predictor(image, WORDS)
    assert np.array_equal(want.label_map, again.label_map) and want.removed == again.removed


def test_threads_take_turns(predictor, image):
    vocabularies = [WORDS, WORDS[:3], ["sea", "river", "rock", "sky"], [*WORDS, "balloon"]]
    want = [predictor(image, words).label_map for words in vocabularies]
    alone = [predictor.base(image, words).label_map for words in vocabularies]
    faults = []

    def work(index: int) -> None:
        for _ in range(3):
            got = predictor(image, vocabularies[index]).label_map
            base = predictor.base(image, vocabularies[index]).label_map
            if not (np.array_equal(got, want[index]) and np.array_equal(base, alone[index])):
                faults.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(vocabularies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_named_configs_work_from_any_folder(tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    assert FreeCPPredictor("scenes/clearclip", OPTS)(image, ["sky", "sea"]).shares.sum() > 0.9


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ("nowhere.png", FileNotFoundError, "nowhere.png: no such file"),
        (".", FileNotFoundError, "a folder"),
        (np.zeros((4, 4), np.uint8), ValueError, r"shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"3\) uint8 in RGB"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, "several images are a list"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "float32"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
        (torch.zeros(3, 4, 4), TypeError, "Tensor.* is no image"),
        (None, TypeError, "NoneType.* is no image"),
        ([3], TypeError, "int.* is no image"),
    ],
)
def test_bad_images_are_named(predictor, given, error, sentence):
    with pytest.raises(error, match=sentence):
        predictor(given, WORDS)


@pytest.mark.parametrize(
    ("vocabulary", "error", "sentence"),
    [
        ([], ValueError, "vocabulary is empty"),
        (["sky", " "], ValueError, "class 2 has an empty name"),
        (["sky", "sky "], ValueError, "'sky' of class 1"),
        (["very " * 90], ValueError, "CLIP's context holds"),
        ("sky,lawn", FileNotFoundError, r"give a list of names, \['sky', 'lawn'\]"),
        ("sky", FileNotFoundError, r"'sky': there is no such file; .* \['sky'\], or the path"),
        ("words.txt", FileNotFoundError, "'words.txt': there is no such file; check the path"),
        (Path("words"), FileNotFoundError, "'words': there is no such file; check the path"),
        (".", FileNotFoundError, "'.': this is a folder"),
        ([3], TypeError, "class 1 must be a name"),
        (7, TypeError, "list of names or a file"),
    ],
)
def test_bad_vocabularies_are_named(predictor, image, vocabulary, error, sentence):
    with pytest.raises(error, match=sentence):
        predictor(image, vocabulary)


def test_of_two_classes_of_one_name_the_first_gets_the_pixels(predictor, image):
    words = Vocabulary((("sky",), ("sand",), ("sky",), ("dog",)), repeats=True)
    for segment in (predictor, predictor.base):
        shares = segment(image, vocabulary=words).shares
        assert shares[0] > 0 and shares[2] == 0
    with_background = predictor(image, vocabulary=words, background=["wallpaper"])
    assert with_background.class_names == ("background", "sky", "sand", "sky", "dog")


def test_other_misuse_is_named(predictor, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png: not an image"):
        predictor(broken, WORDS)
    with pytest.raises(ValueError, match="True, auto, random or a list"):
        predictor(image, WORDS, background="wall")
    with pytest.raises(ValueError, match="has no thresholds"):
        predictor.base.segment(predictor.encode(image), WORDS, redundancy_threshold=0.1)
    with pytest.raises(ValueError, match="the base method encoded"):
        predictor.segment(predictor.base.encode(image), WORDS)
    with pytest.raises(ValueError, match="'moon' is no class"):
        predictor.class_maps(predictor.encode(image), ["moon"], WORDS)
    with pytest.raises(FileNotFoundError, match="scenes/clearclip"):
        FreeCPPredictor("scenes/clerclip")
    with pytest.raises(FileNotFoundError, match="no such file"):
        FreeCPPredictor("nowhere.yaml")
    with pytest.raises(ValueError, match="MODEL.NOTHING"):
        FreeCPPredictor("scenes/clearclip", ["MODEL.NOTHING", "1"])


def test_a_dict_is_a_vocabulary(predictor, image):
    words = predictor.prepare({"sky": [], "lawn": ["meadow", "lawn"], "road": "street"})
    assert words.classes == (("sky",), ("lawn", "meadow"), ("road", "street"))
    by_dict = predictor(image, {"sky": [], "lawn": ["meadow"]})
    assert np.array_equal(
        by_dict.label_map, predictor(image, ["sky", ["lawn", "meadow"]]).label_map
    )


@pytest.mark.parametrize("url", ["https://x.org/a.jpg", "HTTP://x.org/a.jpg", "ftp://x/a.png"])
def test_urls_are_refused(predictor, url):
    with pytest.raises(ValueError, match="a URL; download the image"):
        predictor(url, WORDS)


def test_a_call_takes_thresholds_and_descriptions(predictor, image, tmp_path):
    encoded = predictor.encode(image)
    called = predictor(image, WORDS, redundancy_threshold=0.3, ambiguity_threshold=0.5)
    segmented = predictor.segment(encoded, WORDS, redundancy_threshold=0.3, ambiguity_threshold=0.5)
    assert called.removed == segmented.removed != predictor(image, WORDS).removed
    with pytest.raises(ValueError, match="has no thresholds"):
        predictor.base(image, WORDS, redundancy_threshold=0.3)
    # Look-alikes whose descriptions change places win and lose the other way round.
    pair = ["lawn", "meadow"]
    own = {name: [f"a photo of a {name}"] for name in pair}
    file = tmp_path / "descriptions.json"
    file.write_text('{"lawn": ["a photo of a meadow"], "meadow": ["a photo of a lawn"]}')
    options = {"redundancy_threshold": 0.0, "ambiguity_threshold": 0.0}
    straight = predictor(image, pair, descriptions=own, **options)
    crossed = predictor(image, pair, descriptions=file, **options)
    assert len(straight.removed) == len(crossed.removed) == 1
    assert straight.removed[0].name == crossed.removed[0].beaten_by
    with pytest.raises(TypeError, match="treshold"):
        predictor(image, WORDS, redundancy_treshold=0.3)


@pytest.mark.parametrize("background", [False, True])
def test_a_map_of_all_scores_on_request(predictor, image, background):
    for segment in (predictor, predictor.base):
        whole = segment(image, WORDS, background, scores_map=True)
        plain = segment(image, WORDS, background)
        assert plain.scores_map is None and whole.scores_map.shape[1:] == image.shape[:2]
        assert np.array_equal(whole.label_map, plain.label_map)
        np.testing.assert_allclose(whole.scores, plain.scores, atol=1e-6)
        np.testing.assert_allclose(whole.confidence, plain.confidence, atol=1e-6)
        labelled = whole.label_map != whole.nothing
        index = np.where(labelled, whole.label_map, 0)[None]
        at_label = np.take_along_axis(whole.scores_map, index, axis=0)[0]
        assert np.array_equal(at_label[labelled], whole.confidence[labelled])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5])
@pytest.mark.parametrize("stage", ["redundancy", "ambiguity"])
def test_thresholds_are_from_0_to_1(predictor, image, stage, value):
    said = f"MODEL.FREECP.{stage.upper()}_THRESHOLD is {value}; give a number from 0 to 1"
    with pytest.raises(ValueError, match=said):
        predictor(image, WORDS, **{f"{stage}_threshold": value})


def test_nothing_stays_nothing_is_labelled(predictor, image):
    nothing = predictor(image, WORDS, redundancy_threshold=1.0)
    assert (nothing.label_map == nothing.nothing).all() and not nothing.shares.any()
    assert len(nothing.removed) == len(WORDS) and nothing.masks == {}
    scored = predictor(image, WORDS, background=True, redundancy_threshold=1.0)
    assert not scored.label_map.any() and scored.shares[0] == 1


def test_one_class_without_background_says_how_to_add_one(predictor, image, caplog):
    predictor.prepare(["sky"])
    assert "one class and no background" in caplog.text and "background=True" in caplog.text
    caplog.clear()
    predictor.prepare(["sky"], background=True)
    predictor.prepare(["sky", "sea"])
    assert not caplog.text


def test_a_list_goes_through_clip_in_batches(predictor, image, monkeypatch):
    """Each image as it is alone, of whatever size, and more of them than are in memory at once."""
    images = [image, image[:100], image[:, :150], *[image[:64, i : i + 64] for i in range(8)]]
    encoder = predictor._segmenter.model.encoder
    sizes, forward = [], encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x: sizes.append(len(x)) or forward(x))
    alone = [predictor(one, WORDS) for one in images]
    one_by_one = len(sizes)
    together = predictor(images, WORDS)
    assert len(sizes) - one_by_one < one_by_one
    for one, other in zip(alone, together, strict=True):
        assert one.label_map.shape == other.label_map.shape
        assert (one.label_map == other.label_map).mean() > 0.999
        assert one.removed == pytest.approx(other.removed) or len(one.removed) == len(other.removed)


def test_the_windows_of_a_list_fill_the_batches(predictor, image, monkeypatch):
    """All but the last of the images that are in memory at once, whichever image they are of."""
    model = predictor._segmenter.model
    sizes, forward = [], model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x: sizes.append(len(x)) or forward(x))
    predictor(image, WORDS)
    windows = sum(sizes)
    monkeypatch.setattr(model, "batch_size", windows + 2)
    sizes.clear()
    predictor([image] * 9, WORDS)
    full, rest = divmod(8 * windows, windows + 2)
    assert sizes == full * [windows + 2] + [rest] + [windows] and full > 1


def test_a_broken_image_is_an_item_that_says_so(predictor, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    given = [image, broken, tmp_path / "nowhere.png", image[:64], None]
    for images in (given, iter(given)):
        items = list(predictor(images, WORDS, on_error="skip"))
        assert [isinstance(item, Segmentation) for item in items] == [
            True,
            False,
            False,
            True,
            False,
        ]
        assert items[1].image == broken and "broken.png: not an image" in items[1].error
        assert "no such file" in items[2].error and "is no image" in items[4].error
        assert np.array_equal(items[0].label_map, predictor(image, WORDS).label_map)
    with pytest.raises(ValueError, match="not an image"):
        predictor(given, WORDS)
    lazy = predictor(iter(given), WORDS)
    assert isinstance(next(lazy), Segmentation)
    with pytest.raises(ValueError, match="not an image"):
        next(lazy)


def test_memory_that_runs_out_on_an_image_is_skipped(predictor, image, monkeypatch):
    """Together with others first, and then alone."""
    model = predictor._segmenter.model
    encode = model.encode

    def limited(sources, *args):
        if any(source["height"] > 100 for source in sources):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return encode(sources, *args)

    monkeypatch.setattr(model, "encode", limited)
    small, large = predictor([image[:64], image], WORDS, on_error="skip")
    assert isinstance(small, Segmentation) and large.image is image
    assert large.error == "memory ran out; give smaller images, or name fewer classes"
    with pytest.raises(torch.OutOfMemoryError):
        predictor([image], WORDS)


def test_device_weights_and_a_model_are_arguments(predictor, image):
    weights = predictor.cfg.MODEL.CLIP.PRETRAINED
    other = FreeCPPredictor("scenes/clearclip", OPTS[2:], device="cpu", weights=weights)
    assert other.cfg.MODEL.DEVICE == "cpu" and other.cfg.MODEL.CLIP.PRETRAINED == weights
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        FreeCPPredictor("scenes/clearclip", OPTS, weights="nowhere.safetensors")
    model = predictor._segmenter.model
    shared = FreeCPPredictor(predictor.cfg, model=model)
    assert shared._segmenter.model is model
    assert np.array_equal(shared(image, WORDS).label_map, predictor(image, WORDS).label_map)


@pytest.mark.parametrize("base", [False, True])
def test_progress_by_windows(base, image):
    """After every batch; the windows are those of the encoded image."""
    opts = [*OPTS, "MODEL.FREECP.WINDOW", "64", "MODEL.FREECP.STRIDE", "48"]
    predictor = FreeCPPredictor("scenes/clearclip", [*opts, "MODEL.FREECP.BATCH_SIZE", "5"])
    predictor = predictor.base if base else predictor
    said: list[tuple[int, int]] = []
    encoded = predictor.encode(image, lambda *counts: said.append(counts))
    batches = [len(batch.windows) for batch in encoded.windows.batches]
    assert len(batches) > 2 and max(batches) == 5
    done = np.cumsum(batches).tolist()
    assert said == [(count, done[-1]) for count in done]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, "0.5", True, [0.5]])
@pytest.mark.parametrize("stage", ["redundancy", "ambiguity"])
def test_thresholds_are_numbers_from_0_to_1(predictor, image, stage, value):
    """Seen before CLIP is asked, and skipped with no image."""
    calls = iter(())
    with pytest.raises(ValueError, match=f"{stage.upper()}_THRESHOLD is .*; give a number from 0"):
        predictor(calls, WORDS, on_error="skip", **{f"{stage}_threshold": value})
    crop = image[:32, :32]
    for number in (0, 1, np.float32(0.5)):
        assert predictor(crop, WORDS, **{f"{stage}_threshold": number}).label_map.shape == (32, 32)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"vocabulary": {"a": 3}}, TypeError, "class 'a' must have a list of more names, not 3"),
        ({"vocabulary": {3: ["a"]}}, TypeError, "class 3 must have"),
        ({"vocabulary": ["dog", "Dog"]}, ValueError, "'Dog' .to CLIP the same as 'dog'. of class"),
        ({"background": [3]}, TypeError, "background is .3.; give True, False or a list"),
        ({"background": None}, TypeError, "background is None; give True, False or a list"),
        ({"background": [["a"]]}, TypeError, "background is ..'a'..; give True"),
        ({"background": ["a", "A"]}, ValueError, "the background has the name 'A' twice"),
        ({"descriptions": 3}, TypeError, "descriptions are class -> sentences, or a file, not 3"),
        ({"descriptions": {"sky": "blue"}}, TypeError, "class 'sky' must have a list of sentences"),
        ({"descriptions": {"sky": [3]}}, TypeError, "class 'sky' must have a list of sentences"),
        ({"descriptions": {3: ["a"]}}, TypeError, "class 3 must have a list of sentences"),
        ({"on_error": "ignore"}, ValueError, "on_error is 'ignore'; choose raise or skip"),
    ],
    ids=str,
)
def test_arguments_of_other_kinds_are_a_sentence(predictor, image, options, error, said):
    with pytest.raises(error, match=said):
        predictor(image[:32, :32], **{"vocabulary": WORDS, **options})


def test_maps_of_no_class(predictor, image):
    with pytest.raises(ValueError, match="no class is asked for"):
        predictor.class_maps(predictor.encode(image[:32, :32]), [], WORDS)
