"""What gpu_report.py says of its measurements: aims, advice, tables, picture."""

import textwrap
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from report import reached, text_of
from tabulate import tabulate

CARDS = (8, 16, 24, 40, 80)
"""GB of memory that there is advice for."""
USABLE, CONTEXT = 0.9, 2**30
"""Share of a card that FreeCP may fill, less CUDA's context and libraries in bytes."""
RATES = {
    "bare": "bare CLIP",
    "dense": "dense features",
    "without_crops": "FreeCP without crops",
    "freecp": "FreeCP",
    "transcription": "transcription",
}


def fastest(report: dict, precision: str, images: int) -> dict | None:
    """The fastest case of the part "speed" by FreeCP's images/s, with or without CUDA graphs."""
    cases = report["parts"].get("speed", {}).get("cases", [])
    same = [c for c in cases if (c["precision"], c["images"]) == (precision, images)]
    measured = [case for case in same if "error" not in case]
    return max(measured, key=lambda c: c["images_per_s"]["freecp"]["median"], default=None)


def name_of(case: dict) -> str:
    """Precision, images at once, and whether CUDA graphs launched it."""
    return f"{case['precision']}, {case['images']}" + (", graphs" if case["cuda_graphs"] else "")


def aims(report: dict) -> list[dict]:
    """The issue's aims of the GPU, in fp16 and 16 images at once: what was measured, and whether it
    reaches them. With CUDA graphs, if these are faster. The one that speaks of an H100 is judged on
    one.
    """
    case = fastest(report, "fp16", 16)
    of_h100 = "H100" in report["machine"]["device"]
    rows = (
        ("head over the bare forward", "head_over_bare", "at most", 0.15, True),
        (
            "images/s over the transcription's",
            "images_per_s_over_transcription",
            "at least",
            10,
            True,
        ),
        ("images/s (on an H100)", None, "at least", 500, of_h100),
    )
    found = []
    for name, key, bound, target, judged in rows:
        value = case and (case[key] if key else case["images_per_s"]["freecp"])
        verdict = reached(value["median"], bound, target) if value and judged else None
        found.append(
            {
                "aim": name,
                "by": case and name_of(case),
                "to_reach": f"{bound} {target}",
                "measured": value,
                "reached": verdict,
            }
        )
    return found


def advice(cases: list[dict]) -> list[dict]:
    """For every card of CARDS the largest measured case that fits: images first, then windows."""
    measured = [case for case in cases if "reserved_bytes" in case]
    found = []
    for card in CARDS:
        room = USABLE * card * 1e9 - CONTEXT
        fitting = [case for case in measured if case["reserved_bytes"] <= room]
        best = max(fitting, key=lambda c: (c["images"], c["windows_at_once"]), default=None)
        row = {"card_gb": card}
        if best is not None:
            row |= {
                "TEST.IMS_PER_BATCH": best["images"],
                "MODEL.FREECP.BATCH_SIZE": best["windows_at_once"],
                "reserved_gb": round(best["reserved_bytes"] / 1e9, 2),
            }
        found.append(row)
    return found


def markdown(report: dict) -> str:
    """The tables; what is missing is said."""
    table = partial(tabulate, tablefmt="github")
    parts, words = report["parts"], {True: "reached", False: "missed", None: ""}
    lines = [f"{report['machine']['device']}, torch {report['machine']['torch']}\n"]
    headers = ("fp16, 16 images at once", "by", "to reach", "median (quartiles)", "")
    lines.append(
        table(
            [
                (a["aim"], a["by"], a["to_reach"], text_of(a["measured"]), words[a["reached"]])
                for a in aims(report)
            ],
            headers,
        )
    )
    for name in ("tests", "vectors"):
        if "passed" in (part := parts.get(name, {})):
            lines.append(
                f"\n{name}: {part['passed']} passed, {part['failed']} failed, "
                f"{part['skipped']} skipped"
            )
            lines += [f"- {f['test']}: {f['message'][:120]}" for f in part["failures"][:20]]
            lines += [f"- {test}: not finished" for test in part["unfinished"]]
    if differences := parts.get("vectors", {}).get("differences"):
        rows = [
            (what, precision, f"{d['worst']:.1e}", f"{d['allowed']:.1e}")
            for what, found in differences.items()
            for precision, d in found.items()
        ]
        lines.append("\n" + table(rows, ("vectors", "precision", "worst", "allowed")))
    if cases := parts.get("operators", {}).get("cases"):
        rows = [
            (
                name,
                f"{case['windows']} x {case['grid']}x{case['grid']}, {case['classes']}",
                f"{o['ms']:.3f}",
                f"{o['plain_ms']:.3f}",
                f"{o['bandwidth_fraction']:.2f}",
                f"{o['matrix_fraction']:.2f}",
                *(
                    "" if o[key] is None else f"{o[key] / 1e6:.1f}"
                    for key in ("peak_bytes", "plain_peak_bytes")
                ),
            )
            for case in cases
            if "error" not in case
            for name, o in case["operators"].items()
        ]
        headers = ("operator", "windows, classes", "ms", "plain, ms", "of a copy's bandwidth")
        headers += ("of a matrix product", "MB", "plain, MB")
        lines.append("\n" + table(sorted(rows, key=lambda row: row[0]), headers))
    if cases := parts.get("speed", {}).get("cases"):
        rows = [
            (name_of(c), c["error"])
            if "error" in c
            else (
                name_of(c),
                *(f"{c['images_per_s'][name]['median']:.4g}" for name in RATES),
                text_of(c["head_over_bare"]),
                f"{100 * c['label_agreement_with_transcription']:.2f} %",
            )
            for c in cases
        ]
        headers = ("precision, images", *(f"{n}, images/s" for n in RATES.values()))
        headers += ("head over bare", "labels as transcribed")
        lines.append("\n" + table(rows, headers))
    if cases := parts.get("launches", {}).get("cases"):
        rows = [
            (
                name_of(c),
                *(c[where][what] for where in c if isinstance(c[where], dict) for what in KINDS),
            )
            for c in cases
        ]
        headers = ("precision, images", "launches outside of the encoder", "waits")
        headers += ("all launches", "waits")
        lines.append("\n" + table(rows, headers))
    if cases := parts.get("memory", {}).get("cases"):
        rows = [
            (c["images"], c["windows_at_once"], c.get("error", ""))
            if "error" in c
            else (c["images"], c["windows_at_once"], f"{c['reserved_bytes'] / 1e9:.2f}")
            for c in cases
        ]
        lines.append("\n" + table(rows, ("images", "windows at once", "GB reserved")))
        rows = [tuple(row.values()) for row in advice(cases)]
        lines.append("\n" + table(rows, ("card, GB", "images", "windows at once", "GB reserved")))
    lines += [f"\nMissing: {name}, {why}" for name, why in report["missing"].items()]
    return "\n".join(lines)


KINDS = ("launches", "waits")


def draw(report: dict, path: Path) -> None:
    """Speed, head, operators, memory; a panel says so where its part is missing."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    (speed, head), (operators, memory) = axes
    for axis, function, part in (
        (speed, draw_speed, "speed"),
        (head, draw_head, "speed"),
        (operators, draw_operators, "operators"),
        (memory, draw_memory, "memory"),
    ):
        cases = report["parts"].get(part, {}).get("cases", [])
        if cases := [case for case in cases if "error" not in case]:
            function(axis, cases)
        else:
            why = report["missing"].get(part, "not measured")
            text = textwrap.fill(f"{part}: {why}"[:200], 40)
            axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
            axis.axis("off")
    quick = ", quick: small sizes, no figures to quote" if report["quick"] else ""
    figure.suptitle(f"{report['machine']['device']}, torch {report['machine']['torch']}{quick}")
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=120)
    plt.close(figure)
    part.replace(path)


def draw_speed(axis: Axes, cases: list[dict]) -> None:
    """Images a second: bars by what runs, one colour a precision and batch."""
    height = 0.8 / len(cases)
    for index, case in enumerate(cases):
        medians = [case["images_per_s"][name]["median"] for name in RATES]
        label = f"{name_of(case)} at once"
        places = [row + index * height for row in range(len(RATES))]
        bars = axis.barh(places, medians, height, label=label)
        axis.bar_label(bars, fmt=" {:.3g}", fontsize=7)
    axis.set_yticks([row + 0.4 - height / 2 for row in range(len(RATES))], list(RATES.values()))
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set(title="images/s")
    axis.legend(fontsize=7, loc="lower right")


def draw_head(axis: Axes, cases: list[dict]) -> None:
    """The head over the bare forward."""
    names = [textwrap.fill(name_of(case), 10) for case in cases]
    shares = [case["head_over_bare"] for case in cases]
    medians = [share["median"] for share in shares]
    error = [
        [share["median"] - share["q1"] for share in shares],
        [share["q3"] - share["median"] for share in shares],
    ]
    axis.bar(names, medians, yerr=error, capsize=3)
    axis.axhline(0.15, color="gray", linestyle=":", label="to reach")
    axis.set(title="head / bare CLIP forward", xlabel="precision, images at once")
    axis.legend(fontsize=8)


def draw_operators(axis: Axes, cases: list[dict]) -> None:
    """What each operator gains over plain PyTorch in the first case, with its time."""
    case = cases[0]
    names = list(case["operators"])
    gains = [case["operators"][n]["plain_ms"] / case["operators"][n]["ms"] for n in names]
    bars = axis.barh(names, [gain - 1 for gain in gains], left=1)
    labels = [
        f" {gain:.3g} ({case['operators'][n]['ms']:.3g} ms)"
        for n, gain in zip(names, gains, strict=True)
    ]
    for bar, gain, label in zip(bars, gains, labels, strict=True):
        place = max(gain, 1), bar.get_y() + bar.get_height() / 2
        axis.annotate(label, place, fontsize=8, va="center")
    axis.axvline(1, color="gray", linestyle=":")
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(min(*gains, 1) / 1.5, 8 * max(*gains, 1))
    title = f"{case['windows']} windows of {case['grid']}x{case['grid']}, {case['classes']} classes"
    axis.set(title=f"operators, {title}", xlabel="time of plain PyTorch / time")


def draw_memory(axis: Axes, cases: list[dict]) -> None:
    """Reserved memory by images and windows at once, beside the cards."""
    names = [f"{case['images']}, {case['windows_at_once']}" for case in cases]
    bars = axis.bar(names, [case["reserved_bytes"] / 1e9 for case in cases])
    axis.bar_label(bars, fmt="{:.2g}", fontsize=8)
    axis.tick_params(axis="x", labelrotation=45)
    top = max(case["reserved_bytes"] for case in cases) / 1e9
    for card in CARDS:
        if card < 1.5 * top or card == CARDS[0]:
            axis.axhline(card, color="gray", linestyle=":")
            axis.annotate(f"card of {card} GB", (0, card), fontsize=7, va="bottom")
    axis.set(title="memory at worst: every class stays", xlabel="images, windows at once")
    axis.set(ylabel="GB reserved")
