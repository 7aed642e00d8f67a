"""The pictures of docs/pictures show what the code does today.

Each carries the facts that it shows. They are found out anew here, by docs/pictures.py, and
compared with a tolerance: other CPUs differ in the last bits.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def load_pictures():
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pictures = load_pictures()
FOLDER = ROOT / "docs" / "pictures"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def shown(name):
    return pictures.read_facts(FOLDER / f"{name}.png")


def differences(old, new, where=""):
    """Where facts differ, and how; numbers by more than 0.001 and 0.3 %.

    Noise of 0.001 on pixels of 0 to 255 moves none of them by a fifth of that.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in old.keys() | new.keys()
            for line in differences(old.get(key), new.get(key), f"{where}/{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}/{i}")]
    if isinstance(old, float) and isinstance(new, float):
        same = old == pytest.approx(new, rel=0.003, abs=0.001)
    else:
        same = old == new
    return [] if same else [f"{where}: {old} in the picture, now {new}"]


@pytest.mark.parametrize("name", pictures.FACTS)
def test_pictures_show_what_the_code_does(name):
    old = shown(name)
    old.pop("swept", None)  # takes long; a few cells of a few scenes stand for it
    lines = differences(old, pictures.FACTS[name]())
    few = "\n".join(sorted(lines)[:10])
    assert not lines, f"{name}.png is old; `python docs/pictures.py {name}` draws it anew:\n{few}"


def test_every_picture_is_drawn_by_the_script():
    assert {path.stem for path in FOLDER.iterdir()} == set(pictures.DRAWN) == set(pictures.FACTS)


def test_differences_are_found_and_last_bits_are_not():
    old = {"mIoU": [19.3, 36.2], "names": ["sky"], "shares": [0.5], "seed": 3}
    near = {"mIoU": [19.31, 36.2], "names": ["sky"], "shares": [0.5005], "seed": 3}
    assert differences(old, old) == differences(old, near) == []
    others = [
        {"mIoU": [19.3, 36.4]},
        {"mIoU": [19.3]},
        {"names": ["sea"]},
        {"shares": [0.503]},
        {"seed": 4},
        {"another": 1},
    ]
    for other in others:
        assert len(differences(old, old | other)) == 1, other
    assert len(differences(old, {k: v for k, v in old.items() if k != "seed"})) == 1


def test_facts_are_in_the_picture(tmp_path):
    path = tmp_path / "one.png"
    pictures.save(Image.new("RGB", (4, 4)), path, {"share": [1 / 3], "class": "sky"})
    assert pictures.read_facts(path) == {"share": [0.3333], "class": "sky"}


def test_the_page_is_in_the_facts_but_for_its_docstrings():
    code = 'def page():\n    """Old."""\n    return label("Drop a picture", 3, f"of {width} px")\n'
    tree = pictures.ast.parse

    def literals(text):
        return list(pictures.literals([tree(text)]))

    assert literals(code) == literals(code.replace("Old", "New"))
    assert literals(code) == ["'Drop a picture'", "3", "'of '", "' px'"]


def test_how_it_works_tells_what_stages_shows():
    facts = shown("stages")
    page = " ".join((ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8").split())
    ours, other = facts["logits"][0]
    assert f"Mountain wins, {ours:.1f} to {other:.1f}." in page
    assert all(ours > other for ours, other in facts["logits"]) and "It wins the other" in page
    for key, sentence in (("boxes", "{} boxes."), ("disputed", '{} boxes of "mountain"')):
        assert f"*In the picture:* {sentence.format(NUMBERS[len(facts[key])])}" in page
    consistency = dict(zip(pictures.CLASSES, facts["consistency"], strict=True))
    for name in ("rock", "bird"):
        assert f"{name} ({consistency[name]:.3f})" in page.lower()


def test_thresholds_tells_what_its_picture_shows():
    facts = shown("thresholds")
    page = " ".join((ROOT / "docs" / "thresholds.md").read_text(encoding="utf-8").split())
    redundancies, ambiguities = facts["thresholds"]
    cells = {
        (redundancy, ambiguity): value
        for redundancy, line in zip(redundancies, facts["swept"]["scenes_val"], strict=True)
        for ambiguity, value in zip(ambiguities, line, strict=True)
    }
    framed, best = cells[tuple(facts["pair"])], max(cells, key=cells.get)
    against = f"{cells[best]:.1f} at {best[0]} and {float(best[1]):g}"
    assert f"right picture: {framed:.1f}, against {against}." in page


def test_without_a_chromium_the_page_is_not_drawn_and_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    pictures.draw_web(tmp_path / "web.png")
    assert "web.png: not drawn. screenshot.py: no chromium found" in capsys.readouterr().out
    monkeypatch.setattr(pictures, "find_spec", lambda name: None if name == "gradio" else name)
    pictures.draw_web(tmp_path / "web.png")
    assert "web.png: not drawn, gradio missing: pip install gradio" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
