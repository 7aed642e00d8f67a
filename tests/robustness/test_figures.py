import numpy as np
import pytest

from freecp_d2.data import Vocabulary
from freecp_d2.robustness.figures import figures, grouped, summed, table, verdict, verdicts
from freecp_d2.robustness.settings import Setting

K = 3
IGNORED = 255


def by_hand(predicted, truth, background):
    """The figures, from label maps whose label K is a distractor's."""
    counts = truth != IGNORED
    predicted, truth = predicted[counts], truth[counts]
    is_foreground = truth > 0 if background else truth >= 0
    stolen = 100 * (predicted[is_foreground] == K).mean()
    if background:
        predicted = np.where(predicted == K, 0, predicted)
    ious, present = [], []
    for c in range(K):
        union = ((predicted == c) | (truth == c)).sum()
        if union:
            iou = ((predicted == c) & (truth == c)).sum() / union
            ious.append(iou)
            present += [iou] if (truth == c).any() else []
    return {
        "mIoU": 100 * np.mean(ious),
        "mIoU-present": 100 * np.mean(present),
        "stolen": stolen,
    }


def cells(predicted, truth):
    table = np.zeros((K + 1, K), dtype=int)
    for p, t in zip(predicted.flat, truth.flat, strict=True):
        if t != IGNORED:
            table[p, t] += 1
    rows, columns = table.nonzero()
    return [rows.tolist(), columns.tolist(), table[rows, columns].tolist()]


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, IGNORED], (4, 12, 9))  # class 2 is predicted, never present
    return rng.integers(0, K + 1, (4, 12, 9)), rng.integers(0, 2, (4, 12, 9)), truth


@pytest.mark.parametrize("background", [False, True])
def test_figures_are_those_of_brute_force_over_all_images(maps, background):
    base, freecp, truth = maps
    setting = Setting("near", Vocabulary.from_names("abcde"), 2)
    records = [
        {"settings": {"near 2": {"base": cells(b, t), "freecp": cells(f, t), "left": [2, i % 2]}}}
        for i, (b, f, t) in enumerate(zip(base, freecp, truth, strict=True))
    ]
    (row,) = summed(iter(records), [setting], K, background)
    assert row["base"] == pytest.approx(by_hand(base, truth, background))
    assert row["freecp"] == pytest.approx(by_hand(freecp, truth, background))
    assert row["base"]["stolen"] > 0 and row["freecp"]["stolen"] == 0
    assert row["base"]["mIoU"] < row["base"]["mIoU-present"]
    assert row["left"] == [2, 0.5]


def test_an_image_of_which_no_pixel_counts_changes_nothing_but_the_mean_of_what_is_left(maps):
    base, freecp, truth = maps
    setting = Setting("near", Vocabulary.from_names("abcde"), 2)
    one = {"base": cells(base[0], truth[0]), "freecp": cells(freecp[0], truth[0]), "left": [2, 1]}
    none = {"base": [[], [], []], "freecp": [[], [], []], "left": [0, 0]}
    records = [{"settings": {"near 2": one}}, {"settings": {"near 2": none}}]
    (alone,) = summed(records[:1], [setting], K, False)
    (both,) = summed(records, [setting], K, False)
    assert (both["base"], both["freecp"]) == (alone["base"], alone["freecp"])
    assert both["left"] == [1, 0.5]


def test_a_distractor_in_the_background_is_right_and_elsewhere_wrong():
    confusion = np.array([[0, 0], [0, 5], [10, 5]])
    ours = figures(confusion, background=True)
    assert ours["stolen"] == 50
    assert ours["mIoU"] == pytest.approx(100 * (10 / 15 + 5 / 10) / 2)
    assert figures(confusion, background=False)["mIoU"] == pytest.approx(100 * (0 + 5 / 10) / 2)


def test_nothing_to_count_is_nan():
    assert all(np.isnan(value) for value in figures(np.zeros((3, 2), int), False).values())


def row(kind, base, freecp, distractors=0, number=None, left=()):
    return {
        "name": f"{kind} {distractors} {number}",
        "kind": kind,
        "distractors": distractors,
        "number": number,
        "base": {"mIoU": base, "mIoU-present": base, "stolen": 1.0},
        "freecp": {"mIoU": freecp, "mIoU-present": freecp, "stolen": 2.0},
        "left": list(left),
    }


def test_draws_are_averaged_and_of_synonyms_the_worst_counts_for_each_method():
    rows = [
        row("official", 30, 40),
        row("synonyms", 25, 20, number=1),
        row("synonyms", 10, 35, number=2),
        row("random", 20, 30, 50, 0, (4, 2)),
        row("random", 24, 36, 50, 1, (6, 1)),
    ]
    official, synonyms, random = grouped(rows)
    assert (official["of"], synonyms["of"], random["of"]) == (1, 2, 2)
    assert (synonyms["base"]["mIoU"], synonyms["freecp"]["mIoU"]) == (10, 20)
    assert (random["base"]["mIoU"], random["freecp"]["mIoU"]) == (22, 33)
    assert random["spread"] == {"base": 2, "freecp": 3}
    assert random["left"] == [5, 1.5]


@pytest.mark.parametrize(
    ("base", "freecp", "absorbed"),
    [
        (20, 35, True),  # 10 and 5: just half
        (20, 34.9, False),
        (20, 45, True),
        (29.8, 39.7, None),
        (29.8, 39.4, False),
        (29.4, 39.6, True),
        (31, 38, False),
    ],
)
def test_a_drop_of_at_most_half_the_base_method_s_is_absorbed(base, freecp, absorbed):
    groups = grouped([row("official", 30, 40), row("near", base, freecp, 50)])
    (found,) = verdicts(groups)
    assert found["absorbed"] is absorbed
    assert (found["base"], found["freecp"]) == (30 - base, 40 - freecp)


@pytest.mark.parametrize(
    ("absorbed", "said"),
    [
        ([None, None], "nothing to absorb"),
        ([True, None], "FreeCP absorbs distractors: "),
        ([True, False], "FreeCP absorbs some distractors: its drop with near 1 is more"),
        ([False, None], "FreeCP absorbs no distractors: its drop is more"),
    ],
)
def test_the_verdict_names_where_it_fails(absorbed, said):
    assert said in verdict([{"name": f"near {i}", "absorbed": a} for i, a in enumerate(absorbed)])


def test_the_table_has_a_row_a_group_and_the_verdict():
    rows = [row("official", 30, 40), row("random", 20, 38, 50, 0, (4, 2))]
    rows.append(row("random", 22, 38, 50, 1, (4, 2)))
    text = table(grouped(rows))
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    assert cells[2] == ["official", "30.0", "40.0", "30.0", "40.0", "-", "-", "-"]
    assert cells[3][:3] == ["random 50", "21.0 ± 1.0", "38.0 ± 0.0"]
    assert cells[3][5:] == ["1.0 %", "2.0 %", "4.0 -> 2.0"]
    assert "FreeCP absorbs distractors" in text
    assert "- random 50: -9.0 points without FreeCP, -2.0 with it, absorbed" in text
