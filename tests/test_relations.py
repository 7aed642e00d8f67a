"""Relations: what their file may say, and that related classes are never in one group."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2 import FreeCPPredictor
from freecp_d2.clip import DenseFeatures
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import draw_scene
from freecp_d2.purification import PurificationHead, stages
from freecp_d2.relations import load_relations, related_queries


def related_of(count: int, *pairs: tuple[int, int]) -> np.ndarray:
    related = np.zeros((count, count), dtype=bool)
    for a, b in pairs:
        related[a, b] = related[b, a] = True
    return related


def groups_of(*arguments) -> list[list[int]]:
    return [group.tolist() for group in stages.ambiguous_groups(*arguments)]


def test_a_related_pair_never_forms_a_group_though_it_is_equal():
    ones = np.ones((2, 2), np.float32)
    assert groups_of(ones, 0.7) == [[0, 1]]
    assert groups_of(ones, 0.7, related_of(2, (0, 1))) == [[0], [1]]


def test_a_third_class_does_not_bring_them_together():
    iou = np.array([[1, 1, 0.8], [1, 1, 0.9], [0.8, 0.9, 1]], np.float32)
    assert groups_of(iou, 0.7, related_of(3, (0, 1))) == [[0], [1, 2]]
    iou[0, 2] = iou[2, 0] = 0.95
    assert groups_of(iou, 0.7, related_of(3, (0, 1))) == [[0, 2], [1]]
    # A link of the threshold itself is one; of two alike the first joins.
    iou[:2, 2] = iou[2, :2] = 0.75
    assert groups_of(iou, 0.75, related_of(3, (0, 1))) == [[0, 2], [1]]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 0.9), st.floats(0, 1))
def test_groups_with_relations(seed, count, threshold, share):
    rng = np.random.default_rng(seed)
    iou = rng.random((count, count), dtype=np.float32)
    iou = np.maximum(iou, iou.T)
    related = np.triu(rng.random((count, count)) < share, 1)
    related |= related.T
    groups = groups_of(iou, threshold, related)
    assert sorted(i for group in groups for i in group) == list(range(count))
    plain = groups_of(iou, threshold)
    for group in groups:
        assert not any(related[pair] for pair in combinations(group, 2))
        assert any(set(group) <= set(whole) for whole in plain)
    # No two groups are left that a link would join without a related pair.
    for one, other in combinations(groups, 2):
        linked = any(iou[a, b] >= threshold for a in one for b in other)
        assert not linked or any(related[a, b] for a in one for b in other)
    # Relations between classes that are not linked change nothing.
    component = {i: number for number, whole in enumerate(plain) for i in whole}
    elsewhere = related_of(
        count, *(p for p in combinations(range(count), 2) if component[p[0]] != component[p[1]])
    )
    assert groups_of(iou, threshold, elsewhere) == plain


class Crops:
    """A CLIP to which every crop looks like the first class."""

    logit_scale, patch_size = 10.0, (16, 16)

    def encode_cls(self, images):
        return torch.eye(3)[:1].expand(len(images), -1)


def test_related_classes_both_stay():
    text = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    patches = torch.zeros(1, 16, 3)
    patches[0, :, 1] = 1
    patches[0, [5, 6, 9, 10]] = torch.tensor([1.0, 0, 0])
    features = DenseFeatures(patches, torch.ones(1, 3), torch.eye(16)[None] + 0.01, (4, 4))
    head = PurificationHead(0.0, 0.7)
    images = torch.zeros(1, 3, 64, 64)
    candidates, _ = head.select(features, text, torch.eye(3), 10.0)
    (selected,) = head.fetch([candidates])
    assert selected.soft_iou[0, 0, 1] == 1
    kept, beaten_by = head.compete(images, selected, torch.eye(3), Crops())
    assert kept[0, :2].tolist() == [True, False] and beaten_by[0, 1] == 0
    related = related_of(3, (0, 1))
    kept, beaten_by = head.compete(images, selected, torch.eye(3), Crops(), related=related)
    assert kept[0, :2].tolist() == [True, True] and (beaten_by == -1).all()


def test_relations_are_of_classes_by_any_of_their_names(tmp_path):
    file = tmp_path / "relations.json"
    content = {"Person": {"shirt": "part", "unicorn": "together"}, "rail": {"train": "together"}}
    file.write_text(json.dumps(content))
    relations = load_relations(file)
    assert relations >= {("person", "shirt"), ("shirt", "person"), ("train", "rail")}
    vocabulary = Vocabulary((("man", "person"), ("dog",), ("Shirt", "blouse")), ("wall", "train"))
    related = related_queries(vocabulary, relations)
    expected = related_of(5, (0, 3), (0, 4), (1, 3), (1, 4))
    assert related.tolist() == expected.tolist()
    assert related_queries(Vocabulary((("person",), ("rail",))), relations) is None
    assert related_queries(Vocabulary((("person", "shirt"), ("dog",))), relations) is None
    assert related_queries(vocabulary, frozenset()) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([["person", "shirt"]], "it is no object"),
        ({"person": "shirt"}, "'person' has 'shirt', no object"),
        ({"person": {"shirt": "wears"}}, "'person' to 'shirt' is 'wears'; choose one of part, tog"),
        ({"person": {"shirt": ["part"]}}, "choose one of part, together"),
        ({"T-shirt": {"t shirt": "part"}}, "'T-shirt' is related to itself; remove it"),
    ],
)
def test_odd_files_get_a_sentence(tmp_path, content, said):
    file = tmp_path / "relations.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        load_relations(file)
    assert str(error.value).startswith(f"MODEL.FREECP.RELATIONS {file}: ")
    assert said in str(error.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.FREECP.RELATIONS: there is no file"):
        load_relations(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="it is not JSON"):
        load_relations(tmp_path / "broken.json")


def test_a_config_keeps_related_classes_apart(tmp_path):
    """Classes related to the winner that beat them are not beaten by it again."""
    opts = ["MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.AMBIGUITY_THRESHOLD", "0.5"]
    names = ["sky", "river", "mountain", "snow", "dog", "cat", "lawn", "road", "sand", "cloud"]
    plain = FreeCPPredictor("scenes/clearclip", opts)
    for seed in range(40):
        image = draw_scene(seed).image
        result = plain(image, names, scores_map=True)
        losers = [r for r in result.removed if r.stage == "ambiguity" and r.beaten_by]
        if losers:
            break
    file = tmp_path / "relations.json"
    file.write_text(json.dumps({r.name: {r.beaten_by: "together"} for r in losers}))
    related = FreeCPPredictor("scenes/clearclip", [*opts, "MODEL.FREECP.RELATIONS", str(file)])
    pairs = {(r.name, r.beaten_by) for r in related(image, names).removed}
    assert not pairs & {(r.name, r.beaten_by) for r in losers}
    file.write_text(json.dumps({"unicorn": {"horn": "part"}}))
    unrelated = FreeCPPredictor("scenes/clearclip", [*opts, "MODEL.FREECP.RELATIONS", str(file)])
    assert np.array_equal(unrelated(image, names, scores_map=True).scores_map, result.scores_map)
