"""Two configurations are never mixed."""

import pytest

from freecp_d2 import get_config
from freecp_d2.data import Vocabulary
from freecp_d2.labelling import Outputs
from freecp_d2.labelling.settings import hash_of_settings, require_same_settings, settings_of
from freecp_d2.segmenter import build_model

CPU = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
WORDS = Vocabulary.from_names(["sky", "lawn"])


def of(*opts, words=WORDS, outputs=None):
    cfg = get_config("scenes/clearclip", [*CPU, *opts])
    return settings_of(cfg, build_model(cfg), words, outputs or Outputs())


def test_a_new_folder_takes_the_settings_and_keeps_them(store):
    settings = of()
    for _ in range(2):
        require_same_settings(store, settings)
    assert hash_of_settings(of()) == hash_of_settings(settings)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (lambda: of("MODEL.CLIP.METHOD", "sclip"), "MODEL.CLIP.METHOD"),
        (lambda: of("MODEL.FREECP.REDUNDANCY_THRESHOLD", "0.1"), "REDUNDANCY_THRESHOLD"),
        (lambda: of("MODEL.CLIP.PRECISION", "bf16"), "precision"),
        (lambda: of("MODEL.FREECP.DESCRIPTIONS", ""), "descriptions"),
        (lambda: of(words=Vocabulary.from_names(["sky", "road"])), "classes, words"),
        (lambda: of(words=Vocabulary((("sky", "blue sky"), ("lawn",)))), "words"),
        (lambda: of(outputs=Outputs(min_confidence=0.5)), "min_confidence"),
    ],
)
def test_other_settings_are_refused_by_name(store, other, key):
    require_same_settings(store, of())
    before = store.read("settings.json")
    with pytest.raises(ValueError, match="labels of another configuration") as error:
        require_same_settings(store, other())
    assert key in str(error.value) and str(store.folder) in str(error.value)
    assert store.read("settings.json") == before


def test_what_changes_no_label_is_no_setting(store):
    require_same_settings(store, of())
    same = ["OUTPUT_DIR", "elsewhere", "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()"]
    require_same_settings(store, of(*same))


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_damaged_settings_are_said(store, content):
    store.write("settings.json", content)
    with pytest.raises(ValueError, match="settings.json is damaged"):
        require_same_settings(store, of())


def test_the_hash_is_of_what_they_are_and_not_of_their_order():
    settings = {"a": 1, "b": [2, 3], "c": "x"}
    assert hash_of_settings(dict(reversed(settings.items()))) == hash_of_settings(settings)
    assert hash_of_settings({**settings, "b": [3, 2]}) != hash_of_settings(settings)


def test_all_that_differs_is_named_in_order(store):
    settings = {key: 1 for key in "fedcba"}
    require_same_settings(store, settings)
    with pytest.raises(ValueError, match=r"\(a, b, c, d, e, g\)"):
        require_same_settings(store, {"f": 1, "g": 1})
