"""What bench.py says of its measurements: figures, tables, picture, JSON."""

import json
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from inputs import STAGES, Sizes
from tabulate import tabulate


def figures(report: dict, sizes: Sizes) -> list[dict]:
    """The issue's figures: what is to be reached, and what was measured."""
    cpu, gpu = report["cpu"], report["gpu"]
    head = next(case for case in cpu["head"] if case["classes"] == sizes.classes[2])
    image, memory = cpu["image"], report["memory"]
    over_memory = memory.get("over_transcription")
    rows = [
        (
            f"head without crop encodes, {head['windows']} windows of {head['grid']}x"
            f"{head['grid']}, {head['classes']} classes, over the bare forward",
            head["steps_2_6_over_bare"],
            ("at most", 0.05),
        ),
        (
            f"whole image {image['size'][0]}x{image['size'][1]}, {image['classes']} classes, over "
            f"the bare forward of its {image['windows']} windows",
            image["over_bare"],
            ("at most", 1.15),
        ),
        ("the same, over DenseCLIP.encode_cls of the windows", image["over_encode_cls"], None),
        ("the same, over the transcription", image["over_transcription"], ("at most", 0.6)),
        ("with the crops", image["with_crops_over_transcription"], None),
        (
            "with the encoder in bf16, over the transcription",
            image["bf16_over_transcription"],
            None,
        ),
        (
            f"peak memory of the head, {memory['grid']}x{memory['grid']}, {memory['classes']} "
            "classes, over the transcription",
            over_memory and {"median": over_memory},
            ("at most", 0.05),
        ),
    ]
    for axis, unit in (("classes", "classes"), ("grid", "patches a side")):
        grows = cpu["growth"][axis]
        rows.append(
            (f"head time from {grows['from']} to {grows['to']} {unit}", grows["ratio"], None)
        )
        rows.append(("its log-log slope", grows["slope"], None))
    for label, gpu_ratio, target in (
        ("GPU: head over the fp16 forward", gpu_figure(gpu, "head", sizes), ("at most", 0.15)),
        ("GPU: images/s over the transcription", gpu_figure(gpu, "image", sizes), ("at least", 10)),
    ):
        rows.append((label, gpu_ratio, target))
    return [
        {
            "figure": label,
            "to_reach": f"{target[0]} {target[1]}" if target else "stated",
            "measured": value,
            "reached": None if not target or not value else reached(value["median"], *target),
        }
        for label, value, target in rows
    ]


def reached(value: float, bound: str, target: float) -> bool:
    """Whether a value is on the right side."""
    return value <= target if bound == "at most" else value >= target


def gpu_figure(gpu: dict | str, what: str, sizes: Sizes) -> dict | None:
    """The GPU's figure of the head or of images per second, if there is a GPU."""
    if isinstance(gpu, str):
        return None
    if what == "head":
        cases = (case for case in gpu["head"] if case["classes"] == sizes.classes[2])
        return next(cases)["steps_2_6_over_bare"]
    over = gpu["image"]["with_crops_over_transcription"]
    return {"median": 1 / over["median"], "q1": 1 / over["q3"], "q3": 1 / over["q1"]}


def text_of(value: dict | None) -> str:
    """Median and quartiles as text."""
    if not value:
        return "not measured"
    if "q1" not in value:
        return f"{value['median']:.3g}"
    return f"{value['median']:.3g} ({value['q1']:.3g} to {value['q3']:.3g})"


def markdown(report: dict) -> str:
    """The tables."""
    words = {True: "yes", False: "no", None: ""}
    table = partial(tabulate, tablefmt="github")
    lines = [
        table(
            [
                (row["figure"], row["to_reach"], text_of(row["measured"]), words[row["reached"]])
                for row in report["figures"]
            ],
            headers=("figure", "to reach", "median (quartiles)", "reached"),
        )
    ]
    for device in ("cpu", "gpu"):
        measured = report[device]
        if isinstance(measured, str):
            continue
        profile = {(row["grid"], row["classes"]): row for row in measured["profile"]}
        rows = []
        for case in measured["head"]:
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
        lines.append(f"\nHead on {measured['machine']['device']}, milliseconds\n")
        headers = ("windows", "classes", "bare CLIP", "steps 2-5", "steps 2-6", "over bare")
        lines.append(table(rows, headers=(*headers, *STAGES)))
        image = measured["image"]
        stages_of = ", ".join(
            f"{name} {s['median']:.0f}" for name, s in image["freecp_stage_ms"].items()
        )
        lines.append(
            f"\nWhole image: bare forward {image['bare_ms']['median']:.0f} ms "
            f"(DenseCLIP.encode_cls {image['encode_cls_ms']['median']:.0f} ms), dense features "
            f"{image['dense_ms']['median']:.0f} ms, FreeCP {image['freecp_ms']['median']:.0f} ms "
            f"({stages_of}), with the encoder in bf16 {image['bf16_ms']['median']:.0f} ms, "
            f"transcription {image['transcription_ms']['median']:.0f} ms (with our encoder "
            f"{image['transcription_with_our_encoder_ms']['median']:.0f} ms). Crops come on top: "
            f"{image['crops']['freecp']} of {image['crop_ms']['freecp']['median']:.1f} ms each "
            f"(transcription: {image['crops']['transcription']} of "
            f"{image['crop_ms']['transcription']['median']:.1f} ms). Label maps agree in "
            f"{100 * image['label_agreement_with_transcription']:.2f} % of pixels."
        )
        rates = measured["operators"]
        lines.append(
            f"\nOperators, {rates['windows']} windows of {rates['grid']}x{rates['grid']}, "
            f"{rates['classes']} classes, over a copy ({rates['copy_gb_per_s']:.0f} GB/s) and a "
            f"matrix product ({rates['matrix_gflop_per_s']:.0f} GFLOP/s)\n"
        )
        rows = [
            (
                name,
                f"{o['ms']:.2f}",
                f"{o['bandwidth_fraction']:.2f}",
                f"{o['matrix_fraction']:.2f}",
            )
            for name, o in rates["operators"].items()
        ]
        headers = ("operator", "ms", "of bandwidth", "of matrix rate")
        lines.append(table(rows, headers=headers))
    memory = report["memory"]
    if "not_measured" in memory:
        lines.append(f"\nMemory: not measured, {memory['not_measured']}.")
    else:
        peaks = [memory[what]["extra_bytes"] / 1e6 for what in ("head", "transcription")]
        lines.append(f"\nPeak memory: head {peaks[0]:.0f} MB, transcription {peaks[1]:.0f} MB.")
    return "\n".join(lines)


def draw(report: dict, path: Path) -> None:
    """The plot: head, whole image, memory, stages."""
    cpu = report["cpu"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    cases = cpu["head"]
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
    head.axhline(0.05, color="gray", linestyle=":", label="to reach")
    head.set(xscale="log", yscale="log", xlabel="classes", title="head / bare CLIP forward")
    ticks = [case["classes"] for case in cases if case["grid"] == cases[0]["grid"]]
    head.set_xticks(ticks, [str(classes) for classes in ticks], rotation=90)
    head.set_yticks([0.002, 0.005, 0.01, 0.02, 0.05])
    head.yaxis.set_major_formatter("{x:g}")
    head.minorticks_off()
    head.legend(loc="lower right", fontsize=8)

    times = cpu["image"]
    bars = {
        "bare CLIP": "bare_ms",
        "dense features": "dense_ms",
        "FreeCP": "freecp_ms",
        "FreeCP, bf16 encoder": "bf16_ms",
        "transcription,\nour encoder": "transcription_with_our_encoder_ms",
        "transcription": "transcription_ms",
    }
    medians = [times[key]["median"] / 1000 for key in bars.values()]
    image.bar_label(image.barh(list(bars), medians), fmt=" %.2f s")
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

    rows = [f"{r['grid']}x{r['grid']}, {r['classes']}" for r in cpu["profile"]]
    left = [0.0] * len(rows)
    for name in STAGES:
        values = [r[f"{name}_ms"]["median"] / r["windows"] for r in cpu["profile"]]
        stage.bar(range(len(rows)), values, bottom=left, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    stage.set_xticks(range(len(rows)), rows, fontsize=7, rotation=90)
    stage.set(title="stages of the head, a window (grid, classes)", ylabel="milliseconds")
    stage.legend(fontsize=8)
    figure.suptitle(f"{cpu['machine']['device']}, {cpu['machine']['threads']} threads, fp32")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(report: dict, folder: Path) -> None:
    """bench.json and bench.png, each replaced when both are there."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(report, folder / "bench.part.png")
    part = folder / "bench.part.json"
    part.write_text(json.dumps(report, indent=1) + "\n")
    for suffix in ("png", "json"):
        (folder / f"bench.part.{suffix}").rename(folder / f"bench.{suffix}")
