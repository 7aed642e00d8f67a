"""Simplified silhouettes against a plain loop, and which label a patch has."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from freecp_d2 import FreeCPPredictor, load_config
from freecp_d2.data.scenes.scene import draw_scene
from freecp_d2.inputs import as_vocabulary
from freecp_d2.segmenter import build_model
from freecp_d2.separability import Patches, silhouette, silhouettes


def by_loops(features: np.ndarray, labels: np.ndarray) -> list[float]:
    """Every patch of a class, in their order."""
    classes = sorted({label for label in labels.tolist() if label >= 0})
    means = {c: features[labels == c].mean(axis=0) for c in classes}

    def distance(x, c):
        return 1 - x @ means[c] / np.linalg.norm(means[c])

    values = []
    for x, label in zip(features, labels.tolist(), strict=True):
        if label >= 0:
            a = distance(x, label)
            b = min(distance(x, c) for c in classes if c != label)
            values.append((b - a) / max(a, b))
    return values


@pytest.mark.parametrize("seed", range(4))
def test_silhouettes_are_those_of_a_loop(seed):
    torch.manual_seed(seed)
    features = F.normalize(torch.randn(60, 6), dim=1)
    labels = torch.randint(-1, 4, (60,)) * 7
    labels[labels < 0] = -1
    values, classes = silhouette(features, labels)
    expected = by_loops(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    assert classes.equal(labels[labels >= 0])
    assert (values.abs() <= 1).all()


def test_apart_is_near_1_and_wrong_is_below_0():
    features = torch.eye(2).repeat_interleave(5, dim=0)
    labels = torch.tensor([0] * 5 + [1] * 5)
    assert silhouette(features, labels)[0].tolist() == pytest.approx([1.0] * 10)
    labels[0] = 1
    assert silhouette(features, labels)[0][0] < 0
    equal, _ = silhouette(torch.ones(4, 1), torch.tensor([0, 0, 1, 1]))
    assert equal.tolist() == [0, 0, 0, 0]


def test_one_class_has_no_silhouette():
    values, classes = silhouette(
        F.normalize(torch.randn(5, 3), dim=1), torch.tensor([2, 2, -1, 2, 2])
    )
    assert len(values) == len(classes) == 0


def test_sums_by_class_leave_out_what_is_no_class():
    torch.manual_seed(0)
    side = (torch.arange(4) + 0.5) / 4
    features = F.normalize(torch.randn(16, 5), dim=1)
    before = torch.randint(0, 3, (16,))
    patches = Patches(features, side.repeat_interleave(4), side.repeat(4), before)
    truth = torch.randint(0, 3, (4, 4), dtype=torch.uint8)
    truth[0] = 255
    predicted = torch.randint(0, 3, (8, 8))
    sums = silhouettes(patches, truth, predicted, 3)
    assert list(sums) == ["truth", "before", "after"]
    of_truth = truth.flatten().long()
    labels = {
        "truth": of_truth.where(of_truth < 3, -1),
        "before": before,
        "after": predicted[1::2, 1::2].flatten(),
    }
    for labelling, (ids, totals, counts) in sums.items():
        values = np.array(by_loops(features.double().numpy(), labels[labelling].numpy()))
        classes = labels[labelling][labels[labelling] >= 0].numpy()
        assert ids == np.unique(classes).tolist()
        assert counts == [int((classes == c).sum()) for c in ids]
        np.testing.assert_allclose(totals, [values[classes == c].sum() for c in ids], atol=1e-4)


def test_patches_lie_where_their_windows_do():
    """Of overlapping windows, of an image whose sides are no multiples of a patch."""
    image = draw_scene(120).image[:, :250]
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", "INPUT.MIN_SIZE_TEST", "0"]
    predictor = FreeCPPredictor("scenes/clearclip", opts)
    segmenter = predictor._segmenter
    words = segmenter.words_of(["sky", "sand"], ["dog"])
    _, _, windows = segmenter.encode([image[:100], image], base=False)
    _, result = segmenter.model.segment(windows, words, separability=True)
    patches = result["patches"]
    ((batch),) = [b for b in windows.batches if b.windows[0].image == 1]
    count = sum(w.image == 1 for w in batch.windows) * batch.grid[0] * batch.grid[1]
    assert len(patches.features) == count
    assert patches.features.equal(batch.patches.flatten(0, 1))
    side = batch.windows[-1].size[0] / batch.grid[0]
    last = batch.windows[-1]
    height, width = image.shape[:2]
    rows = (patches.rows[-batch.grid[1] * batch.grid[0] :] * height).view(batch.grid)
    columns = (patches.columns[-batch.grid[1] * batch.grid[0] :] * width).view(batch.grid)
    for i in range(batch.grid[0]):
        torch.testing.assert_close(rows[i, 0], torch.tensor(last.rows.start + (i + 0.5) * side))
        torch.testing.assert_close(
            columns[0, i], torch.tensor(last.columns.start + (i + 0.5) * side)
        )
    similarity = patches.features @ words.text.T
    best = similarity.argmax(dim=1)
    assert patches.before.equal(best)  # background, sky, sand: a channel each
    marks = torch.arange(height)[:, None].expand(height, width)
    assert (patches.labels_of(marks) - patches.rows * height).abs().max() <= 1


def test_patches_are_read_by_the_words_where_the_method_does():
    """Those that FreeCP is given, of mirrored windows too."""
    opts = ["MODEL.CLIP.RESCLIP.USE_SFR", True, "MODEL.FREECP.ADAPTER", "entropy_weights"]
    model = build_model(load_config("scenes/resclip", [*opts, "MODEL.DEVICE", "cpu"]))
    model.set_vocabulary(as_vocabulary(["sky", "lawn", "dog"]))
    encoded = model.encode([{"image": torch.from_numpy(draw_scene(120).image).permute(2, 0, 1)}])
    (result,) = model.segment(encoded, model.words, separability=True)
    expected = [b.features.patches_for(model.words.text).flatten(0, 1) for b in encoded.batches]
    assert len(expected) == 2 and result["patches"].features.equal(torch.cat(expected))
