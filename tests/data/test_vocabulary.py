"""Vocabularies and descriptions: what files and metadata give, and what is refused."""

import json
from pathlib import Path

import pytest
from detectron2.data.catalog import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2.data import (
    Vocabulary,
    dataset_vocabulary,
    describe,
    load_descriptions,
    load_vocabulary,
    normalized_name,
)
from freecp_d2.data.scenes import CLASSES, DESCRIPTIONS, DESCRIPTIONS_FILE

names = (
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=","), min_size=1)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith("\ufeff"))
)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    every = draw(st.lists(names, unique=True, min_size=1, max_size=12))
    first = draw(st.lists(st.integers(0, len(every)), max_size=4))
    bounds = [0, *sorted(set(first) - {0, len(every)}), len(every)]
    classes = tuple(tuple(every[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    return Vocabulary(classes, tuple(draw(st.lists(names, unique=True, max_size=3))))


@settings(deadline=None)
@given(vocabularies())
def test_queries_and_their_classes(vocabulary):
    queries, background = vocabulary.queries, vocabulary.num_background
    assert queries[:background] == vocabulary.background
    assert len(queries) == background + len(vocabulary.query_class)
    for query, index in zip(queries[background:], vocabulary.query_class, strict=True):
        assert query in vocabulary.classes[index]


@settings(deadline=None)
@given(vocabularies(), st.booleans())
def test_json_round_trip(tmp_path_factory, vocabulary, ascii_only):
    path = tmp_path_factory.mktemp("json") / "v.json"
    content = {"classes": vocabulary.classes, "background": vocabulary.background}
    path.write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
    assert load_vocabulary(path) == vocabulary
    assert dataset_vocabulary(Metadata(name="x", vocabulary=content)) == vocabulary


@settings(deadline=None)
@given(vocabularies(), st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"]), st.booleans())
def test_text_round_trip(tmp_path_factory, vocabulary, newline, marked):
    path = tmp_path_factory.mktemp("text") / "v.txt"
    text = newline.join(" , ".join(names) for names in vocabulary.classes) + newline
    path.write_bytes(text.encode("utf-8-sig" if marked else "utf-8"))
    assert load_vocabulary(path) == Vocabulary(vocabulary.classes)


def test_a_class_may_also_be_background():
    """As "bed" on COCO-Object."""
    vocabulary = Vocabulary((("person",), ("bed", "bunk")), ("sky", "bed"))
    assert vocabulary.queries == ("sky", "bed", "person", "bed", "bunk")
    assert vocabulary.query_class == (0, 1, 1)
    assert vocabulary.num_background == 2


def test_names_are_classes():
    assert Vocabulary.from_names(["cat", "dog"]) == Vocabulary((("cat",), ("dog",)))


@pytest.mark.parametrize(
    ("classes", "background", "said"),
    [
        ((), (), "vocabulary is empty"),
        ((("cat",), ()), (), "class 1 has no names"),
        ((("cat", " "),), (), "class 0 has an empty name"),
        ((("cat",), ("dog", "cat")), (), "class 1 has the name 'cat' of class 0"),
        ((("cat", "cat"),), (), "class 0 has the name 'cat' of class 0"),
        ((("cat",),), ("sky", "sky"), "background has the name 'sky' twice"),
        ((("cat",),), ("",), "background has an empty name"),
    ],
)
def test_what_is_no_vocabulary(classes, background, said):
    with pytest.raises(ValueError, match=said):
        Vocabulary(classes, background)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("v.txt", b"", "is empty"),
        ("v.txt", b" \n\n", "is empty"),
        ("v.txt", b"cat\n\ndog, \n", "line 3 has an empty name"),
        ("v.txt", b"cat\n\ndog\npuss,cat\n", "line 4 has the name 'cat' of line 1"),
        ("v.txt", b"c\xe9dre\n", "not UTF-8"),
        ("v.json", b"c\xe9dre", "not UTF-8"),
        ("v.json", b"", "not JSON"),
        ("v.json", b'["cat",', "not JSON .*line 1"),
        ("v.json", b"[]", "is empty"),
        ("v.json", b"3", "must be a list"),
        ("v.json", b'"cat"', "must be a list"),
        ("v.json", b'["cat", 3]', "entry 1 must be a list of names, not 3"),
        ("v.json", b'["cat", ["dog", null]]', "entry 1 must be a list of names"),
        ("v.json", b'["cat", []]', "entry 1 has no names"),
        ("v.json", b'["cat", ""]', "entry 1 has an empty name"),
        ("v.json", b'["cat", ["dog", " cat"]]', "entry 1 has the name 'cat' of entry 0"),
        ("v.json", b'{"background": ["sky"]}', "\"classes\".*it has 'background'"),
        ("v.json", b'{"classes": ["cat"], "class": []}', "no other"),
        ("v.json", b'{"classes": ["cat"], "classes": ["dog"]}', "key 'classes' is there twice"),
        ("v.json", b'{"classes": ["cat"], "background": "sky"}', "background must be a list"),
        ("v.json", b'{"classes": ["a"], "background": ["sky", "sky"]}', "'sky' twice"),
    ],
)
def test_a_bad_file_is_named_and_where(file, content, said, tmp_path):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_vocabulary, load_descriptions])
def test_a_missing_file_is_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MODEL\.FREECP\..*missing\.json"):
        load(tmp_path / "missing.json")


def test_descriptions_are_read(tmp_path):
    assert load_descriptions(DESCRIPTIONS_FILE) == DESCRIPTIONS
    path = tmp_path / "d.json"
    path.write_text('{"cat": ["It purrs.", "Felino pequeño."]}', encoding="utf-8")
    assert load_descriptions(str(path)) == {"cat": ["It purrs.", "Felino pequeño."]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"{}", "one class or more"),
        (b'["cat"]', "must be an object"),
        (b'{"cat": 3}', "'cat' must have a list of one sentence or more, or another"),
        (b'{"cat": "It purrs."}', "'cat' refers to 'It purrs.', which has no sentences"),
        (b'{"cat": "cat"}', "'cat' refers to 'cat', which has no sentences"),
        (b'{"cat": "puss", "puss": "tom", "tom": ["a"]}', "'cat' refers to 'puss', which has no"),
        (b'{"hot dog": ["a"], "hotdog": ["b"]}', "'hotdog' and 'hot dog' are the same name"),
        (b'{"cat": []}', "'cat' must have a list of one"),
        (b'{"cat": ["It purrs.", 3]}', "'cat' has a sentence"),
        (b'{"cat": ["It purrs.", " "]}', "'cat' has a sentence"),
        (b'{"cat": ["a"], "cat": ["b"]}', "'cat' is there twice"),
    ],
)
def test_bad_descriptions_are_named(content, said, tmp_path):
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        load_descriptions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_alias_has_the_other_entry_s_list(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('{"puss": "cat", "cat": ["It purrs.", "It is furry."]}')
    descriptions = load_descriptions(path)
    assert descriptions["cat"] == ["It purrs.", "It is furry."]
    assert descriptions["puss"] is descriptions["cat"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("traffic light", "trafficlight"),
        ("Traffic-Light", "trafficlight"),
        ("wall_brick/stone", "wallbrickstone"),
        ("bed ", "bed"),
        ("B-52 (plane)", "b52plane"),
        ("Felino pequeño", "felinopequeño"),
        ("+", "+"),
    ],
)
def test_normalized_names(name, expected):
    assert normalized_name(name) == expected


@settings(deadline=None)
@given(st.text())
def test_normalizing_twice_changes_nothing(name):
    assert normalized_name(normalized_name(name)) == normalized_name(name)


def test_describe_looks_for_the_name_and_then_for_its_like():
    descriptions = {"Hot-dog": ["a"], "hotdog": ["b"], "tv": ["c"], "empty": []}
    assert describe(descriptions, "hotdog") == ["b"]
    assert describe(descriptions, "hot dog") == ["a"]
    assert describe(descriptions, "T V") == ["c"]
    assert describe(descriptions, "empty") is None
    assert describe(descriptions, "dog") is None
    assert describe({}, "dog") is None


def test_files_of_the_package_load_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_descriptions("freecp_d2://scenes/descriptions.json") == DESCRIPTIONS
    vocabulary = load_vocabulary("freecp_d2://benchmarks/curated/cityscapes.json")
    assert ("traffic light", "traffic signal") in vocabulary.classes
    with pytest.raises(FileNotFoundError, match=r"freecp_d2/data/nothing\.json; check"):
        load_vocabulary("freecp_d2://nothing.json")


def test_a_data_set_brings_its_vocabulary():
    own = Vocabulary((("cat", "puss"),), ("sky",))
    classes = ["cat", "dog"]
    assert dataset_vocabulary(Metadata(name="x", stuff_classes=classes, vocabulary=own)) is own
    of_classes = dataset_vocabulary(Metadata(name="x", stuff_classes=classes))
    assert of_classes == Vocabulary((("cat",), ("dog",)))
    nested = dataset_vocabulary(Metadata(name="x", vocabulary=[["cat", "puss"], "dog"]))
    assert nested == Vocabulary((("cat", "puss"), ("dog",)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "'pets' has no stuff_classes and no vocabulary"),
        ({"stuff_classes": ["cat", "cat"]}, "'pets': entry 1 has the name 'cat'"),
        ({"stuff_classes": []}, "'pets': the vocabulary is empty"),
        ({"vocabulary": 3}, "'pets': the classes must be a list"),
    ],
)
def test_a_data_set_without_a_vocabulary_is_named(fields, said):
    with pytest.raises(ValueError, match=said):
        dataset_vocabulary(Metadata(name="pets", **fields))


def test_scenes_are_registered():
    from detectron2.data import MetadataCatalog

    scenes = MetadataCatalog.get("scenes_val")
    assert dataset_vocabulary(scenes).queries == tuple(CLASSES)
    assert Path(scenes.image_root).name == "images"
