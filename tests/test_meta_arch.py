"""FreeCP against the published sliding-window vectors, and METHOD.md step 8 by brute force."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import freecp_d2.merging
import freecp_d2.meta_arch
import freecp_d2.purify
import freecp_d2.refinement
import freecp_d2.scores
import freecp_d2.words
from freecp_d2 import FreeCP, transfers
from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.text import TextEncoder
from freecp_d2.data import Vocabulary
from freecp_d2.data.benchmarks.protocols import SAME, Refinement
from freecp_d2.ops import pamr
from freecp_d2.propagation import propagate
from freecp_d2.purification import PurificationHead
from freecp_d2.purify import purify_windows
from freecp_d2.sliding_window import patch_padding, upsample, upsample_rows, windows_of
from freecp_d2.timing import StageTimer

MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)


class StubTokenizer:
    """The text tower of the vectors' CLIP has 16 tokens: every text is two of them."""

    context_length = 8

    def __call__(self, texts, context_length=8):
        tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
        tokens[:, 0] = 14
        tokens[:, 1] = 15
        return tokens


def build(encoder: DenseCLIP, inputs: dict, case: dict, enabled: bool = True, **options) -> FreeCP:
    """A model of the vectors' text features."""
    count, background = len(inputs["text"]), case["num_background"]
    names = [f"class {i}" for i in range(count)]
    vocabulary = Vocabulary(
        tuple((name,) for name in names[background:]), tuple(names[:background])
    )
    head = PurificationHead(case["redundancy_threshold"], case["ambiguity_threshold"])
    arguments = {
        "encoder": encoder,
        "text_encoder": TextEncoder(encoder.model, StubTokenizer()),
        "vocabulary": vocabulary,
        "descriptions": {},
        "head": head,
        "enabled": enabled,
        "window": case.get("window", 0),
        "stride": case.get("stride", 0),
        "batch_size": 4,
        "protocol": replace(SAME, probability_threshold=0.5),
        "pixel_mean": MEAN,
        "pixel_std": STD,
        "input_format": "RGB",
        **options,
    }
    model = FreeCP(**arguments)
    model.words = replace(model.words, text=inputs["text"], descriptions=inputs["descriptions"])
    return model


def rename(freecp: FreeCP, vocabulary: Vocabulary) -> None:
    """Group the same queries into other classes."""
    query_class = torch.tensor(vocabulary.query_class)
    freecp.words = replace(freecp.words, vocabulary=vocabulary, query_class=query_class)


def as_detectron2(normalised: torch.Tensor, **fields) -> dict:
    """A Detectron2 input, float 0-255 RGB, of a normalised image (1,3,H,W)."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return {"image": normalised[0] * std + mean, **fields}


@pytest.fixture
def model(encoder, inputs, cases):
    return lambda case, **options: build(encoder(case), inputs, cases[case], **options)


@pytest.mark.parametrize("case", ["sliding", "sliding_background"])
def test_sliding_windows_are_the_published(case, model, inputs, vectors, cases):
    height, width = cases[case]["output_size"]
    x = as_detectron2(inputs["large_image"], height=height, width=width)
    sem_seg = model(case)([x])[0]["sem_seg"]
    expected = vectors(case)
    agreement = (sem_seg.argmax(0) == expected["labels"][0]).float().mean()
    assert agreement >= 0.999
    torch.testing.assert_close(sem_seg[:, ::4, ::4], expected["sem_seg"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["maskclip", "sclip", "clearclip", "gem", "clearclip_background"])
def test_a_whole_image_is_the_published_maps(case, model, inputs, vectors):
    x = as_detectron2(inputs["image"])
    sem_seg = model(case)([x])[0]["sem_seg"]
    expected = vectors(case)
    kept, num_classes = expected["kept"], len(expected["consistency"])
    first = len(inputs["text"]) - num_classes
    maps = torch.zeros(num_classes, *sem_seg.shape[1:])
    refined = expected["refined"][:, first:][:, kept]
    maps[kept] = F.interpolate(refined, sem_seg.shape[1:], mode="bilinear")[0]
    if first:
        maps = torch.cat([1 - maps.amax(0, keepdim=True), maps])
    torch.testing.assert_close(sem_seg, maps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("enabled", [True, False])
def test_uint8_and_bgr_are_the_same_image(enabled, model, inputs):
    image = as_detectron2(inputs["large_image"])["image"].round().clamp(0, 255)
    expected = model("sliding", enabled=enabled)([{"image": image}])[0]["sem_seg"]
    eight_bit = {"image": image.to(torch.uint8)}
    assert model("sliding", enabled=enabled)([eight_bit])[0]["sem_seg"].equal(expected)
    bgr = {"image": image.to(torch.uint8).flip(0)}
    flipped = model("sliding", enabled=enabled, input_format="BGR")
    assert flipped([bgr])[0]["sem_seg"].equal(expected)
    assert not model("sliding", enabled=enabled)([bgr])[0]["sem_seg"].equal(expected)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_batch_of_different_sizes_is_its_images(enabled, model, inputs):
    batch = [
        as_detectron2(inputs["large_image"], height=90, width=100),
        as_detectron2(inputs["image"]),
        as_detectron2(inputs["large_image"].transpose(2, 3)),
        as_detectron2(inputs["image"][:, :, :40, :1]),
    ]
    freecp = model("sliding", enabled=enabled)
    together = [output["sem_seg"] for output in freecp(batch)]
    assert together[0].shape == (15, 90, 100) and together[3].shape == (15, 40, 1)
    for x, sem_seg in zip(batch, together, strict=True):
        alone = freecp([x])[0]["sem_seg"]
        torch.testing.assert_close(sem_seg, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("background", [0, 3])
def test_the_base_method_alone_is_step_8(background, encoder, inputs, cases):
    clip = encoder("clearclip")
    case = {**cases["sliding"], "num_background": background, "window": 100, "stride": 44}
    freecp = build(
        clip, inputs, case, enabled=False, protocol=replace(SAME, probability_threshold=0.11)
    )
    image = inputs["large_image"][:, :, :, :150]
    sem_seg = freecp([as_detectron2(image, height=60, width=70)])[0]["sem_seg"]

    total, count = torch.zeros(15, 181, 150), torch.zeros(181, 150)
    for top in (0, 44, 81):
        for left in (0, 44, 50):
            window = image[:, :, top : top + 100, left : left + 100]
            features = clip(F.pad(window, (6, 6, 6, 6)))
            cosine = (features.patches[0] @ inputs["text"].T).T.reshape(1, 15, 7, 7)
            cosine = F.interpolate(cosine, (112, 112), mode="bilinear")[0, :, 6:106, 6:106]
            total[:, top : top + 100, left : left + 100] += cosine
            count[top : top + 100, left : left + 100] += 1
    cosine = F.interpolate((total / count)[None], (60, 70), mode="bilinear")[0]
    probabilities = (50 * cosine).softmax(0)
    if background == 0:
        torch.testing.assert_close(sem_seg, probabilities, atol=1e-5, rtol=0)
        return
    best = torch.cat([probabilities[:3].amax(0, keepdim=True), probabilities[3:]])
    labels = best.argmax(0)
    labels[best.amax(0) < 0.11] = 0
    assert (labels == 0).any() and (labels > 0).any()
    assert (sem_seg.argmax(0) == labels).float().mean() > 0.999


@pytest.mark.parametrize(("height", "width"), [(101, 83), (83, 101), (64, 95), (33, 80)])
@pytest.mark.parametrize("window", [0, 75])
def test_an_odd_padding_has_its_larger_half_at_the_end(
    height, width, window, encoder, inputs, cases
):
    """METHOD.md section 8: m // 2 zeros at the left and top, the rest at the right and bottom."""
    clip, stride = encoder("clearclip"), 50
    case = {**cases["clearclip"], "window": window, "stride": stride}
    freecp = build(clip, inputs, case, enabled=False)
    image = inputs["large_image"][:, :, :height, :width]
    sem_seg = freecp([as_detectron2(image)])[0]["sem_seg"]

    total, count = torch.zeros(15, height, width), torch.zeros(height, width)
    for place in windows_of(0, (height, width), window, stride):
        rows, columns = place.size
        missing, absent = -rows % 16, -columns % 16
        left, top = absent // 2, missing // 2
        pixels = torch.zeros(1, 3, rows + missing, columns + absent)
        pixels[:, :, top : top + rows, left : left + columns] = image[
            :, :, place.rows, place.columns
        ]
        features = clip(pixels)
        cosine = (features.patches @ inputs["text"].T).transpose(1, 2).unflatten(2, features.grid)
        cosine = F.interpolate(cosine, tuple(pixels.shape[2:]), mode="bilinear")[0]
        total[:, place.rows, place.columns] += cosine[:, top : top + rows, left : left + columns]
        count[place.rows, place.columns] += 1
    probabilities = (50 * total / count).softmax(0)
    torch.testing.assert_close(sem_seg, probabilities, atol=1e-5, rtol=0)


def both_outputs(freecp: FreeCP, x: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of every class, and the label map."""
    results = []
    for output in ("sem_seg", "label_map"):
        freecp.output = output
        results.append(freecp([x])[0][output])
    return results[0], results[1]


def stub_maps(values: dict[int, float], monkeypatch) -> None:
    """Purified maps that are constant: class -> value; the others are removed."""

    def purify(*arguments):
        purified = purify_windows(*arguments)
        maps = [torch.zeros_like(window_maps) for window_maps in purified.maps]
        kept = np.zeros_like(purified.kept)
        for class_id, value in values.items():
            kept[:, class_id] = True
            for window_maps in maps:
                window_maps[:, class_id] = value
        return replace(purified, maps=maps, kept=kept)

    monkeypatch.setattr(freecp_d2.meta_arch, "purify_windows", purify)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({2: 0.5}, 0),  # 1 - 0.5 is the background's: equal, and it is in front
        ({2: 0.5 + 2**-24}, 3),
        ({2: 0.5 - 2**-25}, 0),
        ({2: 0.75, 4: 0.75}, 3),
        ({4: 0.75, 2: 0.5}, 5),
        ({0: 0.0}, 0),
        ({}, 0),
    ],
)
def test_ties_with_the_background_are_the_backgrounds(values, label, model, inputs, monkeypatch):
    freecp = model("clearclip_background")
    stub_maps(values, monkeypatch)
    sem_seg, labels = both_outputs(freecp, as_detectron2(inputs["image"]))
    assert sem_seg.argmax(0).eq(label).all() and labels.eq(label).all()
    assert sem_seg[0].eq(1 - max(values.values(), default=0)).all()


@pytest.mark.parametrize(
    ("values", "label"), [({2: 0.75, 4: 0.75}, 2), ({4: 0.25}, 4), ({3: 0.0}, 0), ({}, 0)]
)
def test_ties_of_classes_are_the_firsts(values, label, model, inputs, monkeypatch):
    freecp = model("clearclip")
    stub_maps(values, monkeypatch)
    sem_seg, labels = both_outputs(freecp, as_detectron2(inputs["image"]))
    assert sem_seg.argmax(0).eq(label).all() and labels.eq(label).all()


def test_a_class_takes_the_best_of_its_names(model, inputs):
    x = as_detectron2(inputs["large_image"])
    for enabled in (True, False):
        freecp = model("sliding", enabled=enabled)
        single = freecp([x])[0]["sem_seg"]
        rename(freecp, Vocabulary((tuple("abcdefgh"), tuple("ijklmno"))))
        double = freecp([x])[0]["sem_seg"]
        assert double.equal(torch.stack([single[:8].amax(0), single[8:].amax(0)]))


def test_purified_channels_are_not_upsampled(model, inputs, monkeypatch):
    channels = []
    upsample = freecp_d2.scores.upsample

    def counted(maps, size):
        channels.append(len(maps))
        return upsample(maps, size)

    for module in (freecp_d2.merging, freecp_d2.scores):
        monkeypatch.setattr(module, "upsample", counted)
    sem_seg = model("sliding")([as_detectron2(inputs["large_image"])])[0]["sem_seg"]
    *windows, final = channels
    assert final == int(sem_seg.flatten(1).any(1).sum()) < 15
    assert max(windows) <= final


@pytest.mark.parametrize("case", ["sliding", "sliding_background"])
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("redundancy_threshold", [None, 1.0])
def test_the_label_map_is_the_argmax(case, enabled, redundancy_threshold, model, inputs):
    freecp = model(case, enabled=enabled)
    if enabled and redundancy_threshold is not None:
        freecp.head.redundancy_threshold = redundancy_threshold
    x = as_detectron2(inputs["large_image"], height=90, width=100)
    sem_seg = freecp([x])[0]["sem_seg"]
    freecp.output = "label_map"
    (result,) = freecp([x])
    assert result["label_map"].equal(sem_seg.argmax(0)) and "sem_seg" not in result
    torch.testing.assert_close(result["scores"], sem_seg.amax((1, 2)))


@pytest.mark.parametrize("case", ["sliding", "sliding_background"])
def test_the_label_map_a_map_at_a_time_is_the_same(case, model, inputs, monkeypatch):
    freecp = model(case)
    freecp.output = "label_map"
    x = as_detectron2(inputs["large_image"], height=90, width=100)
    (together,) = freecp([x])
    monkeypatch.setattr(freecp_d2.scores, "MAP_VALUES", 1)
    (one_by_one,) = freecp([x])
    assert one_by_one["label_map"].equal(together["label_map"])
    assert one_by_one["scores"].equal(together["scores"])


class LargestTensor(TorchDispatchMode):
    """Remembers how many values the largest tensor of any operator had."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr():
                stored = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.values = max(self.values, stored)
        return result


@pytest.mark.parametrize("enabled", [True, False])
def test_a_label_map_needs_no_score_of_every_class_at_every_pixel(
    enabled, model, inputs, monkeypatch
):
    monkeypatch.setattr(freecp_d2.refinement, "STRIP_VALUES", 2**16)
    monkeypatch.setattr(freecp_d2.scores, "MAP_VALUES", 2**16)
    freecp = model("sliding", enabled=enabled)
    if enabled:
        freecp.head.redundancy = freecp.head.ambiguity = False
    freecp.output = "label_map"
    x = as_detectron2(inputs["large_image"], height=1000, width=800)
    with LargestTensor() as largest:
        freecp([x])
    assert 1000 * 800 <= largest.values < 1.5 * 1000 * 800 < 15 * 1000 * 800


@pytest.mark.parametrize("enabled", [True, False])
def test_under_autocast(enabled, model, inputs):
    """What the encoder gives in bfloat16 goes on in float32."""
    freecp = model("sliding", enabled=enabled)
    x = as_detectron2(inputs["large_image"])
    expected = freecp([x])[0]["sem_seg"]
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = freecp([x])
    assert result["sem_seg"].dtype == torch.float32
    agreement = (result["sem_seg"].argmax(0) == expected.argmax(0)).float().mean()
    assert agreement > (0.8 if enabled else 0.95)  # with random weights a class may go or stay


def test_buffers_are_where_the_encoder_is(encoder, inputs, cases, monkeypatch):
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: torch.zeros(15, 32))
    monkeypatch.setattr(freecp_d2.words, "description_features", lambda *_: torch.zeros(15, 32))
    freecp = build(encoder("sliding").to("meta"), inputs, cases["sliding"])
    freecp.set_vocabulary(freecp.vocabulary)
    devices = {name: buffer.device.type for name, buffer in freecp.named_buffers()}
    words = freecp.words
    for name, tensor in (
        ("text", words.text),
        ("descriptions", words.descriptions),
        ("query_class", words.query_class),
    ):
        devices[name] = tensor.device.type
    assert devices.keys() >= {"normalize.mean", "normalize.std"}
    assert set(devices.values()) == {"meta"} and freecp.device.type == "meta"


def test_what_was_removed_is_said(model, inputs, encoder):
    """Against the head, window by window, with classes of two names."""
    freecp = model("sliding")
    rename(freecp, Vocabulary(tuple((f"{i}", f"{i}b") for i in range(7)) + (("14",),)))
    query_class, words = freecp.vocabulary.query_class, freecp.words
    x = as_detectron2(inputs["large_image"])
    (result,) = freecp([x])
    kept, kept_redundancy = torch.zeros(8).bool(), torch.zeros(8).bool()
    consistency, losses = torch.zeros(8), set()
    for window in windows_of(0, inputs["large_image"].shape[2:], freecp.window, freecp.stride):
        pixels = inputs["large_image"][:, :, window.rows, window.columns]
        purified = freecp.head(
            pixels, encoder("sliding")(pixels), words.text, words.descriptions, freecp.encoder
        )
        for query, class_id in enumerate(query_class):
            kept[class_id] |= purified.kept[0, query]
            kept_redundancy[class_id] |= purified.kept_redundancy[0, query]
            score = purified.consistency[0, query]
            consistency[class_id] = max(consistency[class_id], score)
            winner = int(purified.beaten_by[0, query])
            if winner >= 0 and query_class[winner] != class_id:
                losses.add((class_id, query_class[winner]))
    assert result["kept"].equal(kept) and result["kept_redundancy"].equal(kept_redundancy)
    assert result["ambiguous_losses"] == sorted(losses) and losses
    torch.testing.assert_close(result["consistency"], consistency, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("winner", [0, 1, 14])
def test_every_winner_of_an_ambiguity_is_said(winner, model, inputs, monkeypatch):
    freecp = model("clearclip")

    def purify(*arguments):
        purified = purify_windows(*arguments)
        beaten_by = np.full_like(purified.beaten_by, -1)
        beaten_by[:, 7] = winner
        kept = np.zeros_like(purified.kept)
        redundancy = kept.copy()
        kept[:, winner] = redundancy[:, [winner, 7]] = True
        return replace(purified, beaten_by=beaten_by, kept=kept, kept_redundancy=redundancy)

    monkeypatch.setattr(freecp_d2.meta_arch, "purify_windows", purify)
    (result,) = freecp([as_detectron2(inputs["image"])])
    assert result["ambiguous_losses"] == [(7, winner)]
    assert result["kept"].nonzero().flatten().tolist() == [winner]
    assert result["kept_redundancy"].nonzero().flatten().tolist() == sorted([winner, 7])


def test_its_state_is_the_encoders(model):
    """Words and pixel statistics are of the config, not of a checkpoint."""
    freecp = model("sliding")
    assert all(key.startswith("encoder.") for key in freecp.state_dict())
    buffers = {name for name, _ in freecp.named_buffers() if not name.startswith("encoder.")}
    assert buffers == {"normalize.mean", "normalize.std"}


@pytest.mark.parametrize("enabled", [True, False])
def test_windows_one_by_one_are_the_batch(enabled, model, inputs):
    x = as_detectron2(inputs["large_image"])
    together = model("sliding", enabled=enabled, batch_size=100)([x])[0]["sem_seg"]
    alone = model("sliding", enabled=enabled, batch_size=1)([x])[0]["sem_seg"]
    torch.testing.assert_close(alone, together, atol=2e-5, rtol=0)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("size", [(5, 40), (40, 5), (3, 7)])
def test_an_image_smaller_than_a_patch_is_enlarged_to_one(size, enabled, model, inputs):
    image = inputs["image"][:, :, : size[0], : size[1]]
    enlarged = [max(side, 16) for side in size]
    larger = F.interpolate(image, enlarged, mode="bilinear", align_corners=False)
    freecp = model("sliding", enabled=enabled)
    found = freecp([as_detectron2(image, height=20, width=30)])[0]["sem_seg"]
    expected = freecp([as_detectron2(larger, height=20, width=30)])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_segmenting_again_does_not_encode_again(model, inputs, monkeypatch):
    freecp = model("sliding")
    batch = [as_detectron2(inputs["large_image"]), as_detectron2(inputs["image"])]
    expected = freecp(batch)
    encoded = freecp.encode(batch)
    monkeypatch.setattr(freecp.encoder, "forward", None)
    for result, other in zip(freecp.segment(encoded, freecp.words), expected, strict=True):
        assert result["sem_seg"].equal(other["sem_seg"])
    freecp.head.redundancy_threshold = 0.0
    freecp.head.ambiguity = False
    assert freecp.segment(encoded, freecp.words)[0]["kept"].sum() > expected[0]["kept"].sum()


@pytest.mark.parametrize("batch_size", [100, 1])
def test_which_classes_stay_comes_to_the_host_twice(batch_size, model, inputs, monkeypatch):
    """Before and after look-alikes compete, however many batches of windows there are."""
    counts, to_host = [], transfers.to_host

    def counted(tensors):
        counts.append(len(tensors))
        return to_host(tensors)

    monkeypatch.setattr(transfers, "to_host", counted)
    x = as_detectron2(inputs["large_image"])
    encoded = model("sliding", batch_size=batch_size).encode([x])
    batches = len(encoded.batches)
    assert batches == 1 or batch_size == 1
    model("sliding").segment(encoded, model("sliding").words)
    assert counts == [5 * batches, 2 * batches]


@pytest.mark.parametrize("enabled", [True, False])
def test_seconds_by_stage(enabled, model, inputs):
    freecp = model("sliding", enabled=enabled)
    assert freecp.timings == {}
    start = time.perf_counter()
    freecp([as_detectron2(inputs["large_image"])])
    seconds = time.perf_counter() - start
    stages_of = {"encode", "merge"} | ({"purify", "ambiguity"} if enabled else set())
    assert set(freecp.timings) == stages_of
    assert 0.5 * seconds < sum(freecp.timings.values()) < seconds
    freecp.timer = StageTimer()
    assert freecp.timings == {}


def test_when_nothing_is_left_the_map_is_zero(model, inputs):
    freecp = model("sliding")
    freecp.head.redundancy_threshold = 1.0
    assert not freecp([as_detectron2(inputs["large_image"])])[0]["sem_seg"].any()
    freecp = model("sliding_background")
    freecp.head.redundancy_threshold = 1.0
    sem_seg = freecp([as_detectron2(inputs["large_image"])])[0]["sem_seg"]
    assert sem_seg[0].eq(1).all() and not sem_seg[1:].any()


@pytest.mark.parametrize("enabled", [True, False])
def test_an_image_of_one_pixel(enabled, model):
    pixel = torch.full((3, 1, 1), 200, dtype=torch.uint8)
    sem_seg = model("sliding", enabled=enabled)([{"image": pixel, "height": 2, "width": 3}])
    assert sem_seg[0]["sem_seg"].shape == (15, 2, 3) and sem_seg[0]["sem_seg"].isfinite().all()


@pytest.mark.parametrize("enabled", [True, False])
def test_nan_names_the_file(enabled, model, inputs):
    good = as_detectron2(inputs["large_image"], file_name="good.png")
    bad = as_detectron2(inputs["image"].clone(), file_name="bad.png")
    bad["image"][0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="bad.png: NaN"):
        model("sliding", enabled=enabled)([good, bad])


def test_a_wrong_shape_names_the_file(model):
    with pytest.raises(ValueError, match="gray.png: .*shape"):
        model("sliding")([{"image": torch.zeros(32, 32), "file_name": "gray.png"}])


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ({"input_format": "L"}, "INPUT.FORMAT"),
        ({"window": -1}, "MODEL.FREECP.WINDOW"),
        ({"stride": -8}, "MODEL.FREECP.STRIDE"),
        ({"window": 64, "stride": 65}, "MODEL.FREECP.STRIDE"),
        ({"batch_size": 0}, "MODEL.FREECP.BATCH_SIZE"),
    ],
)
def test_bad_options_name_the_key(option, key, model):
    with pytest.raises(ValueError, match=key):
        model("sliding", **option)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 200), st.integers(8, 200))
def test_windows_are_as_published(height, width, window, stride):
    stride = min(stride, window)
    windows = windows_of(0, (height, width), window, stride)
    grids = [max(side - window + stride - 1, 0) // stride + 1 for side in (height, width)]
    assert len(windows) == math.prod(grids)
    expected = []
    for row in range(grids[0]):
        for column in range(grids[1]):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            expected.append((max(bottom - window, 0), bottom, max(right - window, 0), right))
    found = [(w.rows.start, w.rows.stop, w.columns.start, w.columns.stop) for w in windows]
    assert found == expected
    covered = torch.zeros(height, width)
    for w in windows:
        covered[w.rows, w.columns] += 1
    assert covered.min() >= 1


@settings(deadline=None)
@given(*[st.integers(1, 9)] * 2, *[st.integers(1, 25)] * 2, st.data())
def test_rows_of_upsampled_maps_are_those_rows(height, width, rows, columns, data):
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height))
    start = data.draw(st.integers(0, rows - 1))
    part = slice(start, data.draw(st.integers(start + 1, rows)))
    whole = F.interpolate(maps[None], (rows, columns), mode="bilinear", align_corners=False)[0]
    found = upsample_rows(maps, (rows, columns), part)
    torch.testing.assert_close(found, whole[:, part], atol=1e-6, rtol=1e-5)
    assert upsample_rows(maps.to("meta"), (rows, columns), part).is_meta


def test_windows_pixel_by_pixel():
    assert len(windows_of(0, (5, 7), 5, 1)) == 3
    assert len(windows_of(0, (5, 7), 8, 1)) == len(windows_of(0, (5, 7), 8, 8)) == 1


@pytest.mark.parametrize(("window", "stride"), [(0, 16), (64, 0), (0, 0), (500, 100)])
def test_whole_image(window, stride):
    (one,) = windows_of(3, (90, 120), window, stride)
    assert (one.image, one.size) == (3, (90, 120))


@given(st.integers(1, 100), st.integers(1, 100))
def test_padding_makes_whole_patches(height, width):
    left, right, top, bottom = patch_padding((height, width), (16, 14))
    assert (height + top + bottom) % 16 == 0 and (width + left + right) % 14 == 0
    assert 0 <= right - left <= 1 and 0 <= bottom - top <= 1 and right + left < 14


def refined_at_once(freecp: FreeCP, x: dict) -> torch.Tensor:
    """The scores of every class, in the words of METHOD.md section 8."""
    encoded = freecp.encode([x])
    arguments = encoded, freecp.words, freecp.head, freecp.encoder, None, None, StageTimer()
    purified, size = purify_windows(*arguments), (x["height"], x["width"])
    (image,) = encoded.images
    merged, queries = freecp_d2.merging.merge_windows(
        purified.windows, purified.maps, purified.kept, image.shape[1:]
    )
    maps, guide = (upsample(m, size)[None] for m in (merged, image))
    how = freecp.refinement
    if how.pamr_steps:
        maps = pamr(guide, maps, how.pamr_steps, how.pamr_dilations)
    else:
        text = freecp.words.text[queries + freecp.words.num_background]
        maps = upsample(propagate(maps[0], guide[0], text, size, how.tlp_grid)[None], size)
    scores = torch.zeros(freecp.words.num_channels, *size)
    scores[freecp.words.first_class + queries] = maps[0].clamp(0, 1)
    if freecp.words.num_background:
        scores[0] = 1 - scores[1:].amax(0)
    return scores


@pytest.mark.parametrize("values", [2**26, 1])
@pytest.mark.parametrize("how", [Refinement(3, (8, 2)), Refinement(tlp_grid=40)])
@pytest.mark.parametrize("case", ["sliding", "sliding_background"])
def test_the_maps_of_the_classes_that_stay_are_refined(
    case, how, values, model, inputs, monkeypatch
):
    """In both outputs, at the size of the output; no class that was removed comes back."""
    for name in ("REFINED_VALUES", "STRIP_VALUES"):
        monkeypatch.setattr(freecp_d2.refinement, name, values)
    freecp, usual = model(case, refinement=how), model(case)
    x = as_detectron2(inputs["large_image"], height=150, width=131)
    (result,), (before,) = freecp([x]), usual([x])
    sem_seg = result["sem_seg"]
    # 25 steps of conjugate gradients turn a difference of 1e-7 into one of 1e-3.
    atol = 5e-3 if how.tlp_grid else 1e-5
    torch.testing.assert_close(sem_seg, refined_at_once(freecp, x), atol=atol, rtol=0)
    assert 0 <= sem_seg.min() and sem_seg.max() <= 1
    assert (sem_seg.argmax(0) != before["sem_seg"].argmax(0)).any()
    for key in ("kept", "kept_redundancy", "consistency", "ambiguous_losses"):
        assert torch.equal(torch.as_tensor(result[key]), torch.as_tensor(before[key]))
    first = freecp.words.first_class
    assert 0 < result["kept"].sum() < len(result["kept"])
    assert not sem_seg[first:][~result["kept"]].any()
    freecp.output = "label_map"
    (labels,) = freecp([x])
    assert labels["label_map"].equal(sem_seg.argmax(0))
    assert labels["scores"].equal(sem_seg.amax((1, 2)))
    assert labels["confidence"].equal(sem_seg.amax(0))


@pytest.mark.parametrize("output", ["sem_seg", "label_map"])
def test_without_a_refinement_no_bit_changes(output, model, inputs, monkeypatch):
    """What was computed before there was any, and nothing is asked of it."""
    monkeypatch.setattr(freecp_d2.scores, "refined_strips", None)
    freecp = model("sliding_background", output=output)
    x = as_detectron2(inputs["large_image"], height=90, width=131)
    (result,) = freecp([x])
    encoded = freecp.encode([x])
    arguments = encoded, freecp.words, freecp.head, freecp.encoder, None, None, StageTimer()
    purified = purify_windows(*arguments)
    size = encoded.images[0].shape[1:]
    merged = freecp_d2.merging.merge_windows(purified.windows, purified.maps, purified.kept, size)
    if output == "sem_seg":
        expected = freecp_d2.scores.purified_scores(*merged, freecp.words, (90, 131))
        assert result["sem_seg"].equal(expected)
        return
    expected = freecp_d2.scores.purified_labels(*merged, freecp.words, (90, 131))
    for key, tensor in zip(("label_map", "scores", "confidence"), expected, strict=True):
        assert result[key].equal(tensor)


@pytest.mark.parametrize("how", [Refinement(2, (3,)), Refinement(tlp_grid=30)])
def test_where_no_class_stays_nothing_is_refined(how, model, inputs):
    freecp = model("sliding_background", refinement=how)
    freecp.head.redundancy_threshold = 1.0
    x = as_detectron2(inputs["large_image"], height=20, width=30)
    scores, labels = both_outputs(freecp, x)
    assert scores.shape == (freecp.words.num_channels, 20, 30)
    assert scores[0].eq(1).all() and not scores[1:].any() and not labels.any()


def test_a_base_method_alone_is_refined_on_all_queries(model, inputs):
    protocol = replace(SAME, pamr_steps=2, pamr_dilations=(3, 1))
    x = as_detectron2(inputs["large_image"], height=90, width=131)
    freecp = model("sliding", enabled=False, protocol=protocol)
    sem_seg = freecp([x])[0]["sem_seg"]
    encoded = freecp.encode([x], base=True)
    (maps,) = freecp_d2.merging.base_similarities(encoded, freecp.words, False, StageTimer())
    maps, guide = (upsample(m, (90, 131))[None] for m in (maps, encoded.images[0]))
    expected = (50 * pamr(guide, maps, 2, (3, 1))[0]).softmax(0)
    torch.testing.assert_close(sem_seg, expected, atol=1e-5, rtol=0)
    usual = model("sliding", enabled=False)([x])[0]["sem_seg"]
    assert (usual - sem_seg).abs().max() > 1e-3
