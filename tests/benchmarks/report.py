"""What bench.py says of its measurements: figures, tables, picture, JSON."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from inputs import STAGES, Sizes
from tabulate import tabulate


def figures(report: dict, sizes: Sizes) -> list[dict]:
    """What is to be reached and what was measured, of the parts that are there."""
    rows: list[tuple[str, dict | None, tuple[str, float] | None]] = []
    if "image" in report:
        rows += image_figures(report["image"])
    for case in report.get("evaluator", ()):
        height, width = case["size"]
        target = 3 if height * width < 2**20 else 15
        label = f"evaluator, {height}x{width}, {case['classes']} classes, milliseconds an image"
        rows.append((label, case["ms"], ("at most", target)))
    if "head" in report:
        rows += head_figures(report["head"], sizes)
    if "memory" in report:
        memory = report["memory"]
        over = memory.get("over_transcription")
        label = f"peak memory of the head, {memory['grid']}x{memory['grid']}, {memory['classes']} "
        label += "classes, over the transcription"
        rows.append((label, over and {"median": over}, ("at most", 0.05)))
    return [
        {
            "figure": label,
            "to_reach": f"{target[0]} {target[1]}" if target else "stated",
            "measured": value,
            "reached": None if not target or not value else reached(value["median"], *target),
        }
        for label, value, target in rows
    ]


TARGETS = {"fp32": 0.7, "bf16_matmul": 0.5, "bf16, compiled": 0.25}
"""Of the whole image over the transcription."""


def image_figures(image: dict) -> list[tuple]:
    """Rows of the whole image."""
    height, width = image["size"]
    rows = [
        (
            f"whole image {height}x{width}, {image['classes']} classes, over the bare forward of "
            f"its {image['windows']} windows",
            image["over_bare"],
            ("at most", 1.15),
        ),
        ("the same, over DenseCLIP.encode_cls of the windows", image["over_encode_cls"], None),
    ]
    names = dict.fromkeys((*image["encoders"], *TARGETS))
    for name in names:
        measured = image["encoders"].get(name, {}).get("over_transcription")
        bound = ("at most", TARGETS[name]) if name in TARGETS else None
        rows.append((f"{name}: whole image over the transcription", measured, bound))
    crops = image["encoders"]["fp32"]["with_crops_over_transcription"]
    rows.append(("fp32 with the crops, over the transcription with its crops", crops, None))
    return rows


def head_figures(head: dict, sizes: Sizes) -> list[tuple]:
    """Rows of the head and of how it grows."""
    rows: list[tuple] = []
    for classes, target in zip(sizes.classes[2:], (0.01, 0.05), strict=True):
        case = next(case for case in head["cases"] if case["classes"] == classes)
        label = f"head without crop encodes, {case['windows']} windows of {case['grid']}x"
        label += f"{case['grid']}, {classes} classes, over the bare forward"
        rows.append((label, case["steps_2_6_over_bare"], ("at most", target)))
    for axis, unit in (("classes", "classes"), ("grid", "patches a side")):
        grows = head["growth"][axis]
        label = f"head time from {grows['from']} to {grows['to']} {unit}"
        rows += [(label, grows["ratio"], None), ("its log-log slope", grows["slope"], None)]
    return rows


def reached(value: float, bound: str, target: float) -> bool:
    """Whether a value is on the right side."""
    return value <= target if bound == "at most" else value >= target


def text_of(value: dict | None) -> str:
    """Median and quartiles as text."""
    if not value:
        return "not measured"
    if "q1" not in value:
        return f"{value['median']:.3g}"
    return f"{value['median']:.3g} ({value['q1']:.3g} to {value['q3']:.3g})"


def markdown(report: dict, part: str) -> str:
    """The tables of a part."""
    tables = {
        "image": image_table,
        "evaluator": evaluator_table,
        "head": head_table,
        "operators": operator_table,
        "memory": memory_line,
    }
    return f"\n{tables[part](report[part])}\n"


def figure_table(report: dict) -> str:
    """What is to be reached and what was measured, on which machine."""
    words = {True: "yes", False: "no", None: ""}
    rows = [
        (row["figure"], row["to_reach"], text_of(row["measured"]), words[row["reached"]])
        for row in report["figures"]
    ]
    units = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "multiplies_in_bf16")
    features = ", ".join(name for name in units if name in report["machine"]["features"])
    headers = ("figure", "to reach", "median (quartiles)", "reached")
    machine = report["machine"]
    title = f"On {machine['device']} ({features}), {machine['threads']} threads:\n\n"
    return title + tabulate(rows, headers, tablefmt="github")


def image_table(image: dict) -> str:
    """Encoders, and where the time of the whole image goes."""
    rows = [
        (
            name,
            f"{case['ms']['median']:.0f}",
            text_of(case["over_transcription"]),
            text_of(case["with_crops_over_transcription"]),
            f"{case['one_minus_cosine']:.1e}",
            f"{case['first_call_seconds']:.1f}",
            f"{case['first_call_bytes'] / 1e6:.0f}",
        )
        for name, case in image["encoders"].items()
    ]
    headers = ("encoder", "ms", "over the transcription", "both with crops", "1 - cosine to fp32")
    headers += ("first call, s", "MB")
    stages = ", ".join(f"{name} {s['median']:.0f}" for name, s in image["stage_ms"].items())
    crops = image["crops"]
    return (
        f"{tabulate(rows, headers, tablefmt='github')}\n\n"
        f"Bare forward {image['bare_ms']['median']:.0f} ms (DenseCLIP.encode_cls "
        f"{image['encode_cls_ms']['median']:.0f} ms), dense features "
        f"{image['dense_ms']['median']:.0f} ms, transcription "
        f"{image['transcription_ms']['median']:.0f} ms; stages of fp32: {stages}. Crops come on "
        f"top: {crops['fp32']} of {image['crop_ms']['fp32']['median']:.1f} ms each (transcription: "
        f"{crops['transcription']} of {image['crop_ms']['transcription']['median']:.1f} ms). Label "
        f"maps agree in {100 * image['label_agreement_with_transcription']:.2f} % of pixels."
    )


def evaluator_table(cases: list[dict]) -> str:
    """What an image costs beside the model."""
    rows = [
        (
            f"{case['size'][0]}x{case['size'][1]}",
            case["classes"],
            text_of(case["ms"]),
            text_of(case["reading_ms"]),
        )
        for case in cases
    ]
    headers = ("image", "classes", "evaluator, ms", "ground truth in a worker, ms")
    return tabulate(rows, headers, tablefmt="github")


def head_table(head: dict) -> str:
    """The head and its stages, in milliseconds."""
    profile = {(row["grid"], row["classes"]): row for row in head["profile"]}
    rows = []
    for case in head["cases"]:
        stage = profile[case["grid"], case["classes"]]
        rows.append(
            (
                f"{case['windows']} x {case['grid']}x{case['grid']}",
                case["classes"],
                f"{case['bare_ms']['median']:.0f}",
                f"{case['steps_2_5_ms']['median']:.1f}",
                f"{case['steps_2_6_ms']['median']:.1f}",
                f"{case['steps_2_6_over_bare']['median']:.3f}",
                *(f"{stage[f'{name}_ms']['median']:.1f}" for name in STAGES),
            )
        )
    headers = ("windows", "classes", "bare CLIP", "steps 2-5", "steps 2-6", "over bare")
    return tabulate(rows, (*headers, *STAGES), tablefmt="github")


def operator_table(rates: dict) -> str:
    """Operators over what the machine reaches."""
    rows = [
        (name, f"{o['ms']:.2f}", f"{o['bandwidth_fraction']:.2f}", f"{o['matrix_fraction']:.2f}")
        for name, o in rates["operators"].items()
    ]
    return (
        f"Operators, {rates['windows']} windows of {rates['grid']}x{rates['grid']}, "
        f"{rates['classes']} classes, over a copy ({rates['copy_gb_per_s']:.0f} GB/s) and a "
        f"matrix product ({rates['matrix_gflop_per_s']:.0f} GFLOP/s)\n\n"
        + tabulate(rows, ("operator", "ms", "of bandwidth", "of matrix rate"), tablefmt="github")
    )


def memory_line(memory: dict) -> str:
    """Peak memory of the head and of the transcription."""
    if "not_measured" in memory:
        return f"Memory: not measured, {memory['not_measured']}."
    peaks = [memory[what]["extra_bytes"] / 1e6 for what in ("head", "transcription")]
    return f"Peak memory: head {peaks[0]:.0f} MB, transcription {peaks[1]:.0f} MB."


def draw(report: dict, path: Path) -> None:
    """The plot: head, whole image, memory, stages."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    cases = report["head"]["cases"]
    (head, image), (memory, stage) = axes
    for grid in dict.fromkeys(case["grid"] for case in cases):
        same = [case for case in cases if case["grid"] == grid]
        over = [case["steps_2_6_over_bare"] for case in same]
        median = [o["median"] for o in over]
        error = [
            [o["median"] - o["q1"] for o in over],
            [o["q3"] - o["median"] for o in over],
        ]
        label = f"{same[0]['windows']} of {grid}x{grid}"
        x = [case["classes"] for case in same]
        head.errorbar(x, median, error, marker="o", capsize=3, label=label)
    head.axhline(0.01, color="gray", linestyle=":", label="to reach")
    head.set(xscale="log", yscale="log", xlabel="classes", title="head / bare CLIP forward")
    ticks = [case["classes"] for case in cases if case["grid"] == cases[0]["grid"]]
    head.set_xticks(ticks, [str(classes) for classes in ticks], rotation=90)
    head.set_yticks([0.002, 0.005, 0.01, 0.02, 0.05])
    head.yaxis.set_major_formatter("{x:g}")
    head.minorticks_off()
    head.legend(loc="lower right", fontsize=8)

    times = report["image"]
    bars = {"transcription": times["transcription_ms"], "bare CLIP": times["bare_ms"]}
    bars |= {f"FreeCP, {name}": case["ms"] for name, case in times["encoders"].items()}
    medians = [bar["median"] / 1000 for bar in bars.values()]
    colors = ["gray"] * 2 + ["tab:blue"] * len(times["encoders"])
    image.bar_label(image.barh(list(bars), medians, color=colors), fmt=" %.2f s")
    image.invert_yaxis()
    image.set(title=f"whole image, {times['classes']} classes, without crops", xlabel="seconds")
    image.margins(x=0.2)

    peak = report["memory"]
    title = f"peak memory, {peak['grid']}x{peak['grid']}, {peak['classes']} classes"
    if "not_measured" in peak:
        memory.text(0.5, 0.5, "not measured", ha="center", transform=memory.transAxes)
        memory.axis("off")
    else:
        peaks = {what: peak[what]["extra_bytes"] / 1e9 for what in ("head", "transcription")}
        memory.bar_label(memory.barh(list(peaks), list(peaks.values())), fmt=" %.2f GB")
        memory.invert_yaxis()
        memory.margins(x=0.3)
        memory.set(xlabel="GB")
    memory.set_title(title)

    profile = report["head"]["profile"]
    rows = [f"{r['grid']}x{r['grid']}, {r['classes']}" for r in profile]
    left = [0.0] * len(rows)
    for name in STAGES:
        values = [r[f"{name}_ms"]["median"] / r["windows"] for r in profile]
        stage.bar(range(len(rows)), values, bottom=left, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    stage.set_xticks(range(len(rows)), rows, fontsize=7, rotation=90)
    stage.set(title="head, a window (grid, classes)", ylabel="milliseconds")
    stage.legend(fontsize=8)
    machine = report["machine"]
    figure.suptitle(f"{machine['device']}, {machine['threads']} threads")
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(part, dpi=120)
    part.rename(path)
    plt.close(figure)


def write(report: dict, path: Path) -> None:
    """The report as JSON, replaced when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.rename(path)
