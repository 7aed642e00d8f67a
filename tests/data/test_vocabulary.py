"""Vocabularies and descriptions: what files and metadata give, and what is refused."""

import json
import os
import re
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
from freecp_d2.data.benchmarks import BENCHMARKS, KINDS, PROTOCOL_WORDS, vocabulary_of
from freecp_d2.data.benchmarks import DESCRIPTIONS_FILE as BENCHMARK_DESCRIPTIONS
from freecp_d2.data.scenes import CLASSES, DESCRIPTIONS, DESCRIPTIONS_FILE
from freecp_d2.data.vocabulary import in_words

names = (
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)
    .map(str.strip)
    .filter(in_words)
    .filter(lambda name: not re.search(r"[./\\:]\w", name))  # no paths
)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    every = draw(st.lists(names, unique_by=in_words, min_size=1, max_size=12))
    first = draw(st.lists(st.integers(0, len(every)), max_size=4))
    bounds = [0, *sorted(set(first) - {0, len(every)}), len(every)]
    classes = tuple(tuple(every[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    return Vocabulary(classes, tuple(draw(st.lists(names, unique_by=in_words, max_size=3))))


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
    quoted = [['"' + name.replace('"', '""') + '"' for name in own] for own in vocabulary.classes]
    text = newline.join(" , ".join(names) for names in quoted) + newline
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
        ((("cat",), ()), (), "class 2 has no names"),
        ((("cat", " "),), (), "class 1 has an empty name"),
        ((("cat", "__ _"),), (), "class 1 has an empty name"),
        ((("cat",), ("dog", "cat")), (), "class 2 has the name 'cat' of class 1"),
        ((("cat", "cat"),), (), "class 1 has the name 'cat' of class 1"),
        ((("hot dog",), ("hot_dog",)), (), "'hot_dog' .to CLIP the same as 'hot dog'. of class 1"),
        ((("cat",),), ("hot dog", "hot_dog"), "background has the name 'hot_dog' twice"),
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
        ("v.json", b'["cat", 3]', "entry 2 must be a list of names, not 3"),
        ("v.json", b'["cat", ["dog", null]]', "entry 2 must be a list of names"),
        ("v.json", b'["cat", []]', "entry 2 has no names"),
        ("v.json", b'["cat", ""]', "entry 2 has an empty name"),
        ("v.json", b'["cat", ["dog", " cat"]]', "entry 2 has the name 'cat' of entry 1"),
        ("v.json", b"[" * 100_000, "nested too deeply"),
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


@pytest.mark.parametrize(
    ("text", "classes", "background", "said"),
    [
        (
            "sky, wall, tree\nship\ntable\n",
            ["ship", "table"],
            ["sky", "wall", "tree"],
            "line 1 has",
        ),
        ("\nSky,Rail,sands\ncat,puss\n", [["cat", "puss"]], ["Sky", "Rail", "sands"], "line 2 has"),
        ("background\ncat\ndog", ["cat", "dog"], ["background"], "names of the background"),
        ("Background , sky, lawn\ncat", ["cat"], ["Background", "sky", "lawn"], "the background"),
        ("sky, cloud\nroad", [["sky", "cloud"], "road"], [], None),
        ("road\nsky, wall, tree", ["road", ["sky", "wall", "tree"]], [], None),
        ("background", ["background"], [], None),
        ('"background"\ncat', ["background", "cat"], [], None),
        ('"sky", wall, tree\ncat, puss', [["sky", "wall", "tree"], ["cat", "puss"]], [], None),
        ("sofa, couch, settee\ncat", [["sofa", "couch", "settee"], "cat"], [], 'put "background"'),
        ("cat, dog, sky", [["cat", "dog", "sky"]], [], "one class of 3 names"),
        (
            "0:invalid_class_id\n1:person,child\n2: bike",
            [["person", "child"], "bike"],
            [],
            "numbers",
        ),
        (
            "1:cat,cats,cat\n\n7 : dog\n12:dog",
            [["cat", "cats"], "dog", "dog"],
            [],
            "'dog' .classes",
        ),
        ("0:background,bag,bush,bag\n1:cat", ["cat"], ["background", "bag", "bush"], "background"),
        ('"2:1"\ncat', ["2:1", "cat"], [], None),
        ("cat, puss; dog, hound", [["cat", "puss"], ["dog", "hound"]], [], "separate 2 classes"),
        ("cat;dog;\n", ["cat", "dog"], [], "separate 2 classes"),
        ("background; cat; dog", ["cat", "dog"], ["background"], "separate 3 classes"),
        ('"cat; puss"; dog', ["cat; puss", "dog"], [], "separate 2 classes"),
        ("cat;\ndog;\n", ["cat", "dog"], [], None),
        ('"desk, wooden", bureau\ncat', [["desk, wooden", "bureau"], "cat"], [], None),
        ('"desk, wooden" , bureau\ncat', [["desk, wooden", "bureau"], "cat"], [], None),
        ('a ""big"" cat, 12" pipe\ndog', [['a ""big"" cat', '12" pipe'], "dog"], [], None),
        ('"a ""big"" cat"\n"- dog"\n"names:"', ['a "big" cat', "- dog", "names:"], [], None),
        ("traffic_light\ntv/monitor", ["traffic_light", "tv/monitor"], [], None),
    ],
)
def test_class_files_of_other_projects(text, classes, background, said, tmp_path, caplog):
    path = tmp_path / "v.txt"
    path.write_text(text)
    vocabulary = load_vocabulary(path)
    expected = tuple((c,) if isinstance(c, str) else tuple(c) for c in classes)
    assert (vocabulary.classes, list(vocabulary.background)) == (expected, background)
    messages = [record.getMessage() for record in caplog.records]
    if said is None:
        assert not messages
    else:
        (message,) = messages
        assert str(path) in message and "\n" not in message
        assert re.search(said, message)


def test_the_first_line_of_published_lists_is_the_background(tmp_path):
    for name in ("voc21", "coco_object", "pcontext60"):
        for kind in ("published", *PROTOCOL_WORDS):
            vocabulary = vocabulary_of(BENCHMARKS[name], kind)
            lines = [", ".join(own) for own in (vocabulary.background, *vocabulary.classes)]
            path = tmp_path / "v.txt"
            path.write_text("\n".join(lines))
            assert load_vocabulary(path) == vocabulary


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("v.yaml", "cat\n", r"files of \.yaml are not read"),
        ("v.YML", "cat\n", r"files of \.YML are not read"),
        ("v.py", "cat\n", r"files of \.py are not read"),
        ("v.txt", "- cat\n- dog\n", "line 1 looks like YAML"),
        ("v.txt", "---\ncat\n", "line 1 looks like YAML"),
        ("v", "classes:\n  - cat\n", "line 1 looks like YAML"),
        ("v.txt", "nc: 2\nnames: [cat, dog]\n", "line 1 looks like YAML"),
        ("v.txt", "names:\n  0: cat\n  1: dog\n", "line 1 looks like YAML"),
        ("v.txt", '["cat", "dog"]\n', "looks like JSON; call it .json"),
        ("v.txt", '{\n "classes": ["cat"]\n}\n', "looks like JSON"),
        ("v.txt", "clases.txt\n", "'clases.txt' looks like the path of a file"),
        ("v.json", '["../my/clases"]', "'../my/clases' looks like the path of a file"),
        ("v.txt", "0:cat\ndog\n", "line 2 has no number .* line 1 has"),
        ("v.txt", "0:cat\n2:dog\n1:cow\n", "line 3 has the number 1 after 2"),
        ("v.txt", "0:cat\n0:dog\n", "line 2 has the number 0 after 0"),
        ("v.txt", "0:invalid_class_id\n", "is empty"),
        ("v.txt", "0:\n1:cat\n", "line 1 has an empty name"),
        ("v.txt", "building;edifice\nsky\n", "line 1 has a semicolon"),
        ("v.txt", 'cat\n"desk, wooden\n', "line 2 has a name that begins with a quote"),
        ("v.txt", '"desk, wooden" one\ncat', "line 1 has a name that begins with a quote"),
        ("v.txt", "hot_dog\nhot dog", "line 2 .* the same as 'hot_dog'. of line 1"),
    ],
)
def test_files_of_another_kind_are_refused(file, text, said, tmp_path):
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "clases.txt",
        "./clases",
        "/data/names",
        "~/names",
        "C:\\names",
        "s3://b/n",
        "..\\names",
        "my.json",
    ],
)
def test_one_class_that_looks_like_a_path_is_refused(name):
    with pytest.raises(ValueError, match="looks like the path of a file"):
        Vocabulary.from_names([name])
    assert Vocabulary.from_names([name, "cat"]).queries == (name, "cat")


@pytest.mark.parametrize("name", ["tv/monitor", "St. Bernard", "and/or", "a cat.", "no.5", "cat"])
def test_one_class_with_marks_is_a_class(name):
    assert Vocabulary.from_names([name]).queries == (name,)


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
        (b'{"cat": 3}', "'cat' must have a list of sentences, or another"),
        (b'{"cat": "It purrs."}', "'cat' refers to 'It purrs.', which has no sentences"),
        (b'{"cat": "cat"}', "'cat' refers to 'cat', which has no sentences"),
        (b'{"cat": "puss", "puss": "tom", "tom": ["a"]}', "'cat' refers to 'puss', which has no"),
        (b'{"hot dog": ["a"], "hotdog": ["b"]}', "'hotdog' and 'hot dog' are the same name"),
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
        ({"vocabulary": ["cat", "cat"]}, "'pets': entry 2 has the name 'cat' of entry 1"),
        ({"stuff_classes": ["cat", "_"]}, "'pets': entry 2 has an empty name"),
        ({"stuff_classes": []}, "'pets': the vocabulary is empty"),
        ({"vocabulary": 3}, "'pets': the classes must be a list"),
    ],
)
def test_a_data_set_without_a_vocabulary_is_named(fields, said):
    with pytest.raises(ValueError, match=said):
        dataset_vocabulary(Metadata(name="pets", **fields))


def test_a_data_set_may_have_a_class_twice(caplog):
    """As LVIS and ADE20K-847 do."""
    classes = ["screen", "bag", "hot_dog", "bag", "hot dog", "bag"]
    vocabulary = dataset_vocabulary(Metadata(name="pets", stuff_classes=classes))
    assert vocabulary.queries == tuple(classes)
    assert vocabulary.query_class == (0, 1, 2, 3, 4, 5)
    (record,) = caplog.records
    assert "'pets'" in record.getMessage()
    assert "'bag' (classes 2, 4, 6), 'hot dog' (classes 3, 5)" in record.getMessage()


def test_a_data_set_without_repeats_says_nothing(caplog):
    dataset_vocabulary(Metadata(name="pets", stuff_classes=["cat", "dog"]))
    assert not caplog.records


MODULE = '''"""Sentences."""  # by a language model

VOC = {
    "sky": ["It is blue \\ud83d\\ude00.", "Lone \\ud83d here.", "Half \\ude00."],
    'ship': ("It " "floats.",),  # a comment
    "vessel": "ship",
    "person in shirt jeans dress sweater skirt jacket": [],
}
'''


@pytest.mark.parametrize(
    "module",
    [
        MODULE,
        MODULE.replace("VOC = ", ""),
        MODULE.replace("VOC =", "VOC: dict ="),
        MODULE[MODULE.index("VOC") :],
    ],
)
def test_python_modules_of_one_dict_load(module, tmp_path):
    path = tmp_path / "voc21.py"
    path.write_text(module, encoding="utf-8")
    descriptions = load_descriptions(path)
    assert descriptions == {
        "sky": ["It is blue 😀.", "Lone \ufffd here.", "Half \ufffd."],
        "ship": ["It floats."],
        "vessel": ["It floats."],
        "person in shirt jeans dress sweater skirt jacket": [],
    }
    assert descriptions["vessel"] is descriptions["ship"]


def test_a_module_is_the_dict_that_python_would_make(tmp_path, caplog):
    """Written by a language model, and "bed" is a background and a class of COCO-Object."""
    path = tmp_path / "coco_object.py"
    path.write_text(
        'A = {"bed": ["Old."], "traffic light": ["Red.", " "], "trafficlight": ["Green."], '
        '"bed": ["It has legs.", ""]}'
    )
    assert load_descriptions(path) == {
        "bed": ["It has legs."],
        "traffic light": ["Red."],
        "trafficlight": ["Green."],
    }
    assert "bed more than once; the last entry" in caplog.text


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("", "it has 0 dict literals"),
        ('"""Only this."""', "it has 0 dict literals"),
        ('A = {"cat": ["a"]}\nB = {"dog": ["b"]}', "it has 2 dict literals"),
        ('A = {"cat": ["a"]}\nprint(A)', "line 2 is no dict literal"),
        ("import os", "line 1 is no dict literal"),
        ('A = dict(cat=["a"])', "line 1 is no dict literal"),
        ('A = {"cat": ["a"]}\nA |= {"dog": ["b"]}', "line 2 is no dict literal"),
        ("A = ['cat']", "line 1 is no dict literal"),
        ('A = {"cat": [f"{1}"]}', "its dict is no literal"),
        ('A = {"cat": ["a" * 9]}', "its dict is no literal"),
        ('A = {"cat": [name for name in "ab"]}', "its dict is no literal"),
        ('A = {**{"cat": ["a"]}}', "a key that is no plain text"),
        ('A = {1: ["a"]}', "a key that is no plain text"),
        ('A = {("cat",): ["a"]}', "a key that is no plain text"),
        ('A = {"cat": {"a"}}', "'cat' must have a list"),
        ('A = {"cat": [b"a"]}', "'cat' has a sentence"),
        ('A = {"cat": ["a"', "it is not Python"),
        ("A = {}", "one class or more"),
        ("A = " + "[" * 5000, "it is not Python"),
        ('A = {"cat": ' + "-" * 50_000 + "1}", "it is not Python|is no literal"),
        ("\0", "it is not Python"),
    ],
)
def test_other_modules_are_refused(module, said, tmp_path):
    path = tmp_path / "d.py"
    path.write_text(module)
    with pytest.raises(ValueError, match=said) as caught:
        load_descriptions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "module",
    [
        "open({0!r}, 'w')",
        "A = {{'cat': [open({0!r}, 'w')]}}",
        "A = {{open({0!r}, 'w'): ['a']}}",
        "A = {{'cat': ['a']}}\nopen({0!r}, 'w')",
        "A: open({0!r}, 'w') = {{'cat': ['a']}}",
        "A[open({0!r}, 'w')] = {{'cat': ['a']}}",
        "@open({0!r}, 'w')\ndef f(): pass",
    ],
)
def test_nothing_of_a_module_is_run(module, tmp_path):
    target, path = tmp_path / "written", tmp_path / "d.py"
    path.write_text(module.format(str(target)))
    try:
        load_descriptions(path)
    except ValueError as error:
        assert str(path) in str(error)
    assert os.listdir(tmp_path) == ["d.py"]


def test_half_a_surrogate_pair_in_json(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(r'{"cat\ud83d": ["Half \ude00 of \ud83d\ude00."], "dog": "cat\ud83d"}')
    expected = ["Half \ufffd of 😀."]
    assert load_descriptions(path) == {"cat\ufffd": expected, "dog": expected}
    path.write_text(r'["cat\ud83d", "dog"]')
    assert load_vocabulary(path).queries == ("cat\ufffd", "dog")


def test_an_empty_list_is_no_description(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('{"sky": ["Blue."], "river": [], "stream": "river"}')
    descriptions = load_descriptions(path)
    assert descriptions == {"sky": ["Blue."], "river": [], "stream": []}
    assert describe(descriptions, "river") is describe(descriptions, "stream") is None


def test_ours_describe_every_name_of_the_benchmarks():
    descriptions = load_descriptions(BENCHMARK_DESCRIPTIONS)
    for benchmark in (b for b in BENCHMARKS.values() if b.in_paper):
        for kind in (*KINDS, *PROTOCOL_WORDS):
            for names in vocabulary_of(benchmark, kind).classes:
                for name in names:
                    assert describe(descriptions, name), f"{kind}/{benchmark.name}: {name}"
    person = "person in shirt jeans dress sweater skirt jacket"
    for name in ("person", person, f"{person} body", "person in skirt", "body"):
        assert descriptions[name] is descriptions["person"]
    assert descriptions["television monitor screen"] is descriptions["tv"]


def test_underscores_are_spaces():
    assert in_words("traffic_light") == in_words(" traffic  light_") == "traffic light"
    assert in_words("T-shirt") == "T-shirt" and in_words("__") == ""
    assert Vocabulary.from_names(["traffic_light", "x"]).queries == ("traffic_light", "x")


def test_scenes_are_registered():
    from detectron2.data import MetadataCatalog

    scenes = MetadataCatalog.get("scenes_val")
    assert dataset_vocabulary(scenes).queries == tuple(CLASSES)
    assert Path(scenes.image_root).name == "images"
