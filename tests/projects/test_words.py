"""projects/Words: its figures, and that the settings it compares are what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from freecp_d2 import FreeCPPredictor, background
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.relations import load_relations, related_queries

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "Words"
OPTS = ["MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.BACKGROUND_WORDS.COUNT", "3"]
LEXICON = (
    "sofa",
    "desk",
    "cup",
    "fork",
    "roof",
    "barrel",
    "fence",
    "door",
    "shelf",
    "oven",
    "gate",
)


@pytest.fixture(scope="module")
def measure(load_script):
    """The script; its lexicon, and that of backgrounds, is a dozen words meanwhile."""
    module = load_script(FOLDER / "measure.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "lexicon", lambda *sources: LEXICON)
        patch.setattr(background, "lexicon", lambda *sources: LEXICON)
        yield module


@pytest.fixture(scope="module")
def bench(measure):
    model = FreeCPPredictor("scenes/clearclip", OPTS)._segmenter.model
    samples = []
    for seed in (118, 120):
        scene = draw_scene(seed)
        image = [{"image": torch.from_numpy(scene.image.transpose(2, 0, 1).copy())}]
        samples.append((model.encode(image), model.encode(image, base=True), scene.labels))
    return measure.Bench(model, samples, Vocabulary.from_names(CLASSES), 255)


def test_miou_by_hand(measure):
    # Label 0: 3 of 4 right, and 1 of label 1 beside; label 1: 2 of 3 right; label 2 is in no image.
    confusions = np.array([[[3, 1, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 2, 0], [0, 0, 0]]])
    assert measure.miou(confusions) == pytest.approx(100 * (3 / 5 + 2 / 4) / 2)


def test_confusions_are_of_the_labels_of_a_call(bench, measure):
    of_label = np.full(256, -1)
    of_label[: len(CLASSES)] = np.arange(len(CLASSES))
    words = bench.words(bench.vocabulary)
    confusions = bench.confusions(words, of_label, base=False)
    for sample, confusion in zip(bench.samples, confusions, strict=True):
        (result,) = bench.model.segment(sample[0], words, output="label_map")
        labels, truth = result["label_map"].numpy(), sample[2]
        assert confusion.sum() == truth.size
        for wanted in np.unique(truth):
            for given in range(len(CLASSES)):
                both = ((truth == wanted) & (labels == given)).sum()
                assert confusion[wanted, given] == both


def test_the_background_is_what_was_not_asked_for(bench, measure):
    runs = measure.measure_background(bench, 10, 2, 1)
    rows = ["none", "the 26 of step 0", "auto", "random", "the classes that are hidden"]
    assert list(runs["FreeCP"]) == list(runs["alone"]) == rows
    asked = np.sort(np.random.default_rng(0).permutation(len(CLASSES))[:10])
    hidden = ~np.isin(np.stack([sample[2] for sample in bench.samples]), asked)
    for row in rows:
        first = runs["FreeCP"][row][0]
        assert first.shape == (2, 11, 11) and first[:, 0].sum() == hidden.sum()
    assert runs["FreeCP"]["none"][0][:, :, 0].sum() == 0  # no pixel is given to the background
    assert "| auto |" in measure.table("background", runs)


def test_odd_names_are_of_no_class(bench, measure):
    asked = Vocabulary(((CLASSES[0], "heaven"), *((name,) for name in CLASSES[1:3])))
    vocabulary = measure.with_odd_names(bench.model, asked, 2, 0)
    names = [name for names in vocabulary.classes for name in names]
    assert [names[:-2] for names in vocabulary.classes] == list(asked.classes)
    assert len(set(names)) == len(names) == 10


def test_a_data_set_that_scores_a_background_is_refused(measure, monkeypatch, tmp_path, capsys):
    """Its ids are one more than those of the classes."""
    options = ["--config-file", "voc21/clearclip", "--relations", "x", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["measure.py", *options])
    with pytest.raises(SystemExit):
        measure.main()
    assert "voc_2012_val_21_sem_seg scores a background; take" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["relations_scenes.json", "relations_camvid.json"])
def test_the_relations_are_relations(name):
    relations = load_relations(FOLDER / name)
    classes = sorted({a for a, _ in relations})
    related = related_queries(Vocabulary.from_names(classes), relations)
    assert related.sum() == len(relations)
