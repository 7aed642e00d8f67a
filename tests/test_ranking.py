"""Scores and order of images against plain loops."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from freecp_d2 import FreeCPPredictor, ranking
from freecp_d2.clip.text import encode_sentences, template_sentences
from freecp_d2.data.scenes import draw_scene
from freecp_d2.segmenter import Segmenter

WORDS = [["sky"], ["lawn", "meadow"], ["road"], ["dog"]]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
    return FreeCPPredictor("scenes/clearclip", opts)._segmenter


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_discrepancy_of_a_loop(generator):
    three = torch.rand(3, 2, 4, 5, generator=generator).softmax(dim=2)
    expected = torch.zeros(2, 5)
    for image, patch in np.ndindex(2, 5):
        one, two, three_ = (three[i, image, :, patch].tolist() for i in range(3))
        for a, b in ((one, two), (two, three_), (one, three_)):
            expected[image, patch] += sum(abs(x - y) for x, y in zip(a, b, strict=True))
    torch.testing.assert_close(ranking.discrepancy(*three), expected)


def test_the_discrepancy_is_between_0_and_6():
    three = torch.eye(3)[:, None, :, None]
    assert ranking.discrepancy(*three).item() == ranking.MOST
    assert ranking.discrepancy(three[0], three[0], three[0]).item() == 0


def test_the_scores_of_a_loop(generator):
    distances = torch.rand(37, generator=generator)
    labels = torch.randint(0, 3, (37,), generator=generator) * 2
    base = torch.rand(5, 37, generator=generator).softmax(dim=0)
    base[:, 0] = torch.eye(5)[1]  # 0 log 0 is 0
    scores = ranking.image_scores(distances, labels, base)
    values = distances.tolist()
    of_class = [
        np.mean([v for v, label in zip(values, labels.tolist(), strict=True) if label == k])
        for k in (0, 2, 4)
    ]
    entropy = -sum(p * math.log(p) for p in base.flatten().tolist() if p) / 37
    assert scores == pytest.approx(
        {
            "largest": np.mean(sorted(values)[-4:]),
            "all": np.mean(values),
            "classes": np.mean(of_class),
            "entropy": entropy,
        },
        rel=1e-5,
    )
    assert tuple(scores) == ranking.SCORES


def test_the_classes_that_are_most_confused(generator):
    lists = torch.randint(0, 4, (3, 50), generator=generator)
    counts: Counter = Counter()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for a, b in zip(lists[i].tolist(), lists[j].tolist(), strict=True):
            counts[min(a, b), max(a, b)] += a != b
    assert ranking.most_confused(list(lists), 4) == max(counts, key=lambda pair: counts[pair])
    assert ranking.most_confused([lists[0]] * 3, 4) is None


def test_greedy_order_of_a_loop(generator):
    scores = torch.rand(12, generator=generator).tolist()
    channels = [torch.randperm(6, generator=generator)[: 1 + i % 3].tolist() for i in range(12)]
    expected: list[int] = []
    while len(expected) < 12:
        before = Counter(c for i in expected for c in channels[i])
        values = {
            i: scores[i] * sum(1 / (1 + before[c]) for c in channels[i])
            for i in range(12)
            if i not in expected
        }
        expected.append(max(values, key=lambda i: values[i]))
    assert ranking.greedy_order(scores, channels) == expected


def test_greedy_order_takes_what_is_new_and_every_image_once():
    assert ranking.greedy_order([1.0, 0.9, 0.6, 0.0], [[0], [0], [1], []]) == [0, 2, 1, 3]
    assert ranking.greedy_order([], []) == []
    assert ranking.greedy_order([0.1, 1.0], [[0], [0, 3]]) == [1, 0]
    assert ranking.greedy_order([0.0, 0.0], [[], []]) == [0, 1]


def test_every_template_is_in_one_half(segmenter):
    words = segmenter.words_of(WORDS, ["tree"])
    first, second = ranking.template_halves(segmenter.model, words)
    encoder = segmenter.model.text_encoder
    sentences = template_sentences(words.vocabulary.queries)
    for half, start in ((first, 0), (second, 1)):
        wanted = [entry[start::2] for entry in sentences]
        assert len(wanted[0]) == 40
        expected = encode_sentences(encoder.model, encoder.tokenizer, wanted)
        torch.testing.assert_close(half.text, expected)
        assert half.descriptions is words.descriptions and half.vocabulary is words.vocabulary


@pytest.mark.parametrize("background", [False, ["tree", "wall"]])
@pytest.mark.parametrize("stride", [0, 56])
def test_an_image_by_the_parts_of_the_model(segmenter, background, stride):
    """By window, channel and patch from what the head gives; the second half is other words."""
    model = segmenter.model
    words = segmenter.words_of(WORDS, background)
    text = words.text.roll(1, dims=0)  # halves that differ, as those of the small CLIP hardly do
    halves = words, replace(words, text=text)
    model.window, model.stride = (112, stride) if stride else (0, 0)
    try:
        _, _, encoded = segmenter.encode([draw_scene(87).image], False)
    finally:
        model.window = model.stride = 0
    found = ranking.disagreement(model, encoded, halves)
    total, count, distances, freecp_labels, all_labels, bases = 0, 0, [], [], [], []
    channels = words.query_channel.tolist()
    for batch in encoded.batches:
        for index, window in enumerate(batch.windows):
            features = replace(
                batch.features,
                patches=batch.features.patches[index : index + 1],
                cls=batch.features.cls[index : index + 1],
                attention=batch.features.attention[index : index + 1],
            )
            pixels = encoded.images[0][None, :, window.rows, window.columns]
            readings = []
            model.head.num_background = words.num_background
            for half in halves:
                out = model.head(pixels, features, half.text, half.descriptions, model.encoder)
                base = torch.zeros(words.num_channels, *batch.grid)
                for query, channel in enumerate(channels):
                    base[channel] += out.probabilities[0, query]
                readings.append(base)
                if half is words:
                    scores = torch.zeros_like(base)
                    for query, channel in enumerate(channels[words.num_background :]):
                        scores[channel] = scores[channel].maximum(out.maps[0, query])
                    if words.num_background:
                        scores[0] = 1 - out.maps[0].amax(0)
                    summed = scores.sum(0)
                    freecp = torch.where(summed > 0, scores / summed, 1 / words.num_channels)
            model.head.num_background = 0
            base, other = readings
            distance = sum(
                (a - b).abs().sum(0) for a, b in ((freecp, base), (base, other), (freecp, other))
            )
            large = torch.nn.functional.interpolate(
                distance[None, None], window.size, mode="bilinear", align_corners=False
            )[0, 0]
            covered = torch.zeros(encoded.images[0].shape[1:])
            covered[window.rows, window.columns] = 1
            added = torch.zeros_like(covered)
            added[window.rows, window.columns] = large
            total, count = total + added, count + covered
            distances.append(distance.flatten())
            freecp_labels.append(freecp.argmax(0).flatten())
            bases.append(base.flatten(1))
            all_labels.append(torch.stack([x.argmax(0).flatten() for x in (freecp, base, other)]))
    assert len(distances) == (1 if not stride else encoded.num_windows)
    labels = torch.cat(freecp_labels)
    expected = ranking.image_scores(torch.cat(distances), labels, torch.cat(bases, dim=1))
    assert found.scores == pytest.approx(expected, rel=1e-4)
    assert found.channels == sorted({*labels.tolist()})
    joined = list(torch.cat(all_labels, dim=1))
    assert found.pair == ranking.most_confused(joined, words.num_channels)
    torch.testing.assert_close(found.map, total / count, atol=1e-4, rtol=1e-4)
    assert 0 < found.map.min() and found.map.max() <= ranking.MOST


def test_readings_that_agree_have_no_pair(segmenter):
    """One class: all three say it everywhere."""
    words = segmenter.words_of(["sky"], False)
    _, _, encoded = segmenter.encode([draw_scene(87).image], False)
    found = ranking.disagreement(segmenter.model, encoded, (words, words))
    assert found.pair is None and found.channels == [0]
    assert found.scores == pytest.approx({"largest": 0, "all": 0, "classes": 0, "entropy": 0})


def test_ranking_changes_no_bit_of_a_segmentation(segmenter):
    words = segmenter.words_of(WORDS, ["tree"])
    _, _, encoded = segmenter.encode([draw_scene(87).image], False)
    before = segmenter.model.segment(encoded, words)[0]["sem_seg"]
    halves = ranking.template_halves(segmenter.model, words)
    ranking.disagreement(segmenter.model, encoded, halves)
    assert torch.equal(segmenter.model.segment(encoded, words)[0]["sem_seg"], before)
