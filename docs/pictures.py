"""Draw the pictures of the documentation.

    python docs/pictures.py                 # all of them, into docs/pictures
    python docs/pictures.py gallery maps    # only these

They show the synthetic scenes of freecp_d2.data.scenes and the small CLIP beside them, so that
nothing is downloaded. Run it from the repository's root; web.png needs gradio, Playwright and a
chromium.

Each PNG carries the facts that it shows as JSON. tests/test_pictures.py finds them out anew, and
fails where a picture is older than what it shows.
"""

import argparse
import ast
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

import freecp_d2
from freecp_d2 import FreeCP, FreeCPPredictor, load_config, ops
from freecp_d2.cli.web.sessions import Answer, SessionStore
from freecp_d2.cli.web.views import picture_of
from freecp_d2.data.scenes import CLASSES, HEIGHT, VAL_SEEDS, WIDTH, Scene, draw_scene
from freecp_d2.evaluation.metrics import class_ious, confusion_matrix, mean
from freecp_d2.fonts import draw_text
from freecp_d2.overlay import draw_overlay, palette
from freecp_d2.purification.stages import CROP_SIZE, class_activation_maps
from freecp_d2.sliding_window import upsample

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "scenes/clearclip"
KEY = "facts"
"""Of the PNG's text chunk."""
IGNORED = 255
GALLERY_SEEDS = range(0, 200, 40)
"""Scenes of the gallery: at equal distances in `scenes_val`, not picked by their results."""
SCENE = 118
"""The scene of maps.png and stages.png: both stages have something to remove there."""
CLASS, LOOK_ALIKE = "mountain", "rock"
"""What stages.png follows through `SCENE`, and what is taken for it."""
MAPPED = ("sky", "mountain", "rock", "bird", "snow")
"""The classes of maps.png."""
PATCH = (6, 16)
"""Row and column of the patch whose affinity stages.png shows."""
TUNING_SEEDS = range(950000, 950100)
"""Scenes to choose thresholds on: no `scenes_val`, and no scene that SceneCLIP was trained on."""
REDUNDANCY_THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.065, 0.08, 0.1, 0.15)
AMBIGUITY_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PROBED = 2, (0.01, 0.08), (0.5, 1.0)
"""Scenes and thresholds of the sweep that are in its picture's facts one by one."""

WIDTH_SHOWN = 880
"""Of a picture in a README on GitHub, in CSS pixels."""
GAP, TITLE_SIZE = 8, 14
DPI = 128
"""Of the figures, whose width is 8.8 inches: 1.3 pixels for each of GitHub's."""
GREEN, ORANGE, RED = "#1f7d2e", "#b36b00", "#c62828"
COLORS = palette(len(CLASSES), background=False)


@cache
def build(*options: str) -> FreeCP:
    """The embedded model, which gives label maps."""
    return FreeCP(load_config(CONFIG, [*options, "MODEL.FREECP.OUTPUT", "label_map"])).eval()


def inputs(image: np.ndarray) -> list[dict]:
    """A batch of one (H, W, 3) uint8 RGB image as the model takes it."""
    return [{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}]


def miou(confusion: np.ndarray) -> float:
    """In percent, over the classes present or predicted."""
    return 100 * mean(class_ious(confusion))


def confusion_of(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of one scene."""
    return confusion_matrix(labels, truth.astype(int), len(CLASSES), IGNORED)


def shares(labels: np.ndarray) -> list[float]:
    """The fraction of pixels of each class."""
    return (np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size).tolist()


def mean_color(picture: np.ndarray) -> list[float]:
    """Red, green and blue of a picture as a whole."""
    return picture.reshape(-1, 3).mean(axis=0).tolist()


def overlay(image: np.ndarray, labels: np.ndarray, **options: float) -> np.ndarray:
    """A scene under its label map, with outlines and names."""
    return draw_overlay(image, labels.astype(int), CLASSES, COLORS, IGNORED, **options)


def rounded(facts: object) -> object:
    """With four digits after the point, which is more than a picture shows."""
    if isinstance(facts, dict):
        return {key: rounded(value) for key, value in facts.items()}
    if isinstance(facts, list):
        return [rounded(value) for value in facts]
    return round(facts, 4) if isinstance(facts, float) else facts


def save(picture: Image.Image, path: Path, facts: dict, colors: int = 256) -> None:
    """As a PNG of few colours, a third of the size of one of all, with its facts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_text(KEY, json.dumps(rounded(facts), separators=(",", ":")))
    if picture.mode != "P":
        few = picture.quantize(colors, method=Image.Quantize.MEDIANCUT, kmeans=3)
        picture = picture.quantize(palette=few, dither=Image.Dither.NONE)
    picture.save(path, optimize=True, pnginfo=info)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def read_facts(path: Path) -> dict:
    """What :func:`save` wrote beside the pixels; nothing where it did not."""
    with Image.open(path) as picture:
        return json.loads(picture.info.get(KEY, "{}"))


def image_of(figure: Figure) -> Image.Image:
    """The figure's pixels; it is closed."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()
    plt.close(figure)
    return Image.fromarray(pixels)


def figure_of(rows: int, columns: int, height: float, **options: bool) -> tuple[Figure, np.ndarray]:
    """Axes of a figure as wide as GitHub shows it, `height` inches high."""
    size = WIDTH_SHOWN / 100, height
    return plt.subplots(rows, columns, figsize=size, dpi=DPI, layout="constrained", **options)


def bare(axes: Axes, title: str = "", **style: object) -> None:
    """No ticks, and a title."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9, **style)


def draw_map(axes: Axes, values: Tensor, title: str, **style: object) -> None:
    """A map (h, w) in [0, 1], enlarged to the scene as the method does."""
    large = upsample(values[None].float(), (HEIGHT, WIDTH))[0].cpu().numpy()
    axes.imshow(large, cmap="magma", vmin=0, vmax=1)
    bare(axes, title, **style)


def boxes_of(values: Tensor) -> list[list[int]]:
    """Boxes (x0, y0, x1, y1) in patches around what of a map (h, w) is above 0.4 of its maximum."""
    return ops.component_boxes(values[None])[:, 1:].tolist()


class Row(NamedTuple):
    """A scene of the gallery, with the label maps of the base method and of FreeCP."""

    seed: int
    scene: Scene
    label_maps: list[np.ndarray]

    @property
    def mious(self) -> list[float]:
        return [miou(confusion_of(labels, self.scene.labels)) for labels in self.label_maps]

    @property
    def panels(self) -> list[np.ndarray]:
        image, truth = self.scene.image, self.scene.labels
        return [
            overlay(image, truth, alpha=0),
            *(overlay(image, labels) for labels in self.label_maps),
        ]


@cache
def gallery_rows() -> list[Row]:
    """Where FreeCP gains most comes first."""
    models = build("MODEL.FREECP.ENABLED", "False"), build()
    rows = []
    for seed in GALLERY_SEEDS:
        scene = draw_scene(seed)
        given = inputs(scene.image)
        rows.append(Row(seed, scene, [m(given)[0]["label_map"].cpu().numpy() for m in models]))
    return sorted(rows, key=lambda row: row.mious[0] - row.mious[1])


def gallery_facts() -> dict:
    """Of every scene."""
    return {
        f"scene {row.seed}": {
            "mIoU": row.mious,
            "shares": [shares(labels) for labels in row.label_maps],
            "colors": [mean_color(panel) for panel in row.panels],
        }
        for row in gallery_rows()
    }


def draw_gallery(path: Path) -> None:
    """Scenes with their true classes, base method and FreeCP, at the scenes' own size."""
    rows = gallery_rows()
    title, step = TITLE_SIZE + GAP, HEIGHT + TITLE_SIZE + 2 * GAP
    canvas = Image.new("RGB", (3 * WIDTH + 2 * GAP, step * len(rows) - GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        base, ours = row.mious
        titles = [
            f"scene {row.seed}, true classes",
            f"ClearCLIP alone: mIoU {base:.0f}",
            f"ClearCLIP + FreeCP: mIoU {ours:.0f}",
        ]
        for column, (text, panel) in enumerate(zip(titles, row.panels, strict=True)):
            left, top = column * (WIDTH + GAP), number * step
            draw_text(pen, (left, top + 2), text, TITLE_SIZE, "black")
            canvas.paste(Image.fromarray(panel), (left, top + title))
    save(canvas, path, gallery_facts(), colors=224)


class Purified:
    """Every intermediate result of the method on one scene, seen as one window."""

    def __init__(self, seed: int) -> None:
        self.scene = draw_scene(seed)
        self.model = build("MODEL.FREECP.WINDOW", "0")
        encoded = self.model.encode(inputs(self.scene.image))
        (batch,) = encoded.batches
        model, words, features = self.model, self.model.words, batch.features
        assert words is not None and features is not None
        purified = model.head(batch.pixels, features, words.text, words.descriptions, model.encoder)
        self.pixels = batch.pixels
        scale = model.encoder.logit_scale
        _, normalized = class_activation_maps(features.patches, words.text, scale, features.grid)
        self.normalized = normalized[0]
        self.probabilities = purified.probabilities[0]
        self.refined = purified.refined[0]
        self.consistency = purified.consistency[0]
        self.kept_redundancy = purified.kept_redundancy[0]
        self.kept = purified.kept[0]
        self.beaten_by = purified.beaten_by[0]
        affinity = ops.sinkhorn_affinity(features.attention)[0]
        row, column = PATCH
        weights = (affinity @ affinity)[row * features.grid[1] + column].view(features.grid)
        self.affinity = weights / weights.max()
        self.patch = model.encoder.patch_size[0]
        self.labels = model.segment(encoded, words)[0]["label_map"].cpu().numpy()
        self.threshold = model.head.redundancy_threshold

    def fate(self, index: int) -> tuple[str, str]:
        """What became of a class, and the colour that says so."""
        if self.kept[index]:
            return "stays", GREEN
        if self.kept_redundancy[index]:
            return f"loses to {CLASSES[int(self.beaten_by[index])]}", ORANGE
        return "redundant", RED

    def disputed(self) -> list[list[int]]:
        """Boxes of `CLASS` and `LOOK_ALIKE`, the largest first."""
        pair = [CLASSES.index(CLASS), CLASSES.index(LOOK_ALIKE)]
        boxes = boxes_of(self.refined[pair].mean(dim=0))
        return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))

    def crop(self, box: Sequence[int]) -> tuple[np.ndarray, list[float]]:
        """What CLIP sees of a box, RGB, and its logits of `CLASS` and `LOOK_ALIKE`."""
        model = self.model
        assert model.words is not None
        pair = [CLASSES.index(CLASS), CLASSES.index(LOOK_ALIKE)]
        x0, y0, x1, y1 = (side * self.patch for side in box)
        seen = torch.nn.functional.interpolate(
            self.pixels[:, :, y0:y1, x0:x1], CROP_SIZE, mode="bilinear", align_corners=False
        )
        similarity = model.encoder.encode_cls(seen) @ model.words.descriptions[pair].T
        rgb = (seen[0] * model.normalize.std + model.normalize.mean).round().clamp(0, 255)
        logits = (model.encoder.logit_scale * similarity[0]).tolist()
        return rgb.to(torch.uint8).permute(1, 2, 0).cpu().numpy(), logits


@cache
def purified_scene() -> Purified:
    """The one of maps.png and stages.png."""
    return Purified(SCENE)


def maps_facts() -> dict:
    """Of every class that is shown, how bright its maps are, too."""
    result = purified_scene()
    return {
        name: {
            "probability": float(result.probabilities[index].mean()),
            "refined": float(result.refined[index].mean()),
            "consistency": float(result.consistency[index]),
            "fate": result.fate(index)[0],
        }
        for name, index in ((name, CLASSES.index(name)) for name in MAPPED)
    }


def draw_maps(path: Path) -> None:
    """Class activation maps before and after refinement."""
    result = purified_scene()
    figure, grid = figure_of(2, len(MAPPED) + 1, 2.9)
    grid[0, 0].imshow(result.scene.image)
    bare(grid[0, 0], f"scene {SCENE}")
    grid[1, 0].axis("off")
    text = "above: probability\nbelow: refined, and\nits consistency"
    grid[1, 0].text(0, 0.5, text, va="center", fontsize=9, transform=grid[1, 0].transAxes)
    for column, name in zip(grid[:, 1:].T, MAPPED, strict=True):
        index = CLASSES.index(name)
        draw_map(column[0], result.probabilities[index], name)
        fate, color = result.fate(index)
        title = f"{float(result.consistency[index]):.3f}\n{fate}"
        draw_map(column[1], result.refined[index], title, color=color)
    save(image_of(figure), path, maps_facts())


def stages_facts() -> dict:
    """Of all nine pictures."""
    result, index = purified_scene(), CLASSES.index(CLASS)
    boxes = result.disputed()
    return {
        "threshold": str(result.threshold),
        "probability": float(result.probabilities[index].mean()),
        "boxes": boxes_of(result.normalized[index]),
        "affinity": float(result.affinity.mean()),
        "refined": float(result.refined[index].mean()),
        "consistency": result.consistency.tolist(),
        "fates": [result.fate(i)[0] for i in range(len(CLASSES))],
        "disputed": boxes,
        "logits": [result.crop(box)[1] for box in boxes],
        "shares": shares(result.labels),
        "color": mean_color(overlay(result.scene.image, result.labels)),
    }


def draw_stages(path: Path) -> None:
    """The method step by step on one class of one scene."""
    result = purified_scene()
    index = CLASSES.index(CLASS)
    figure, grid = figure_of(3, 3, 7.4)
    scene, probability, boxes, affinity, refined, bars, rivals, crop, labels = grid.flat

    def frame(axes: Axes, box: Sequence[int], color: str) -> None:
        """Draw a box (x0, y0, x1, y1) of patches."""
        x0, y0, x1, y1 = (side * result.patch for side in box)
        rectangle = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=1.8)
        axes.add_patch(rectangle)

    row, column = PATCH
    scene.imshow(result.scene.image)
    bare(scene, f"scene {SCENE}")
    draw_map(probability, result.probabilities[index], f'1  probability of "{CLASS}"')
    draw_map(boxes, result.normalized[index], "2  boxes around its strong spots")
    for box in boxes_of(result.normalized[index]):
        frame(boxes, box, "cyan")

    draw_map(affinity, result.affinity, "3  affinity of the red patch")
    for axes in (scene, affinity):
        frame(axes, (column, row, column + 1, row + 1), "red")
    draw_map(refined, result.refined[index], f'4  "{CLASS}", refined')

    draw_consistency(bars, result)

    rivals.imshow(result.scene.image)
    bare(rivals, f'6  boxes of "{CLASS}" and "{LOOK_ALIKE}"')
    largest, *others = result.disputed()
    for box in others:
        frame(rivals, box, "cyan")
    frame(rivals, largest, "red")
    seen, (ours, other) = result.crop(largest)
    crop.imshow(seen)
    bare(crop, f"the red box to CLIP: {CLASS} {ours:.1f}, {LOOK_ALIKE} {other:.1f}")

    labels.imshow(overlay(result.scene.image, result.labels))
    bare(labels, "7  label map")
    save(image_of(figure), path, stages_facts())


def draw_consistency(axes: Axes, result: Purified) -> None:
    """The ten highest as bars, each with its class and value at its end."""
    order = result.consistency.argsort(descending=True, stable=True).tolist()[:10][::-1]
    values = [float(result.consistency[i]) for i in order]
    axes.barh(range(len(order)), values, color=[result.fate(i)[1] for i in order])
    for y, (index, value) in enumerate(zip(order, values, strict=True)):
        left = max(value, result.threshold) + 0.01
        axes.text(left, y, f"{CLASSES[index]} {value:.3f}", va="center", fontsize=8)
    axes.axvline(result.threshold, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1.45 * max(values))
    axes.set_yticks([])
    axes.set_xticks([result.threshold, 0.2, 0.4])
    axes.tick_params(labelsize=8)
    axes.set_title("5  consistency, and its threshold", fontsize=9)
    axes.set_box_aspect(HEIGHT / WIDTH)


def sweep(
    seeds: range, redundancies: Sequence[float], ambiguities: Sequence[float]
) -> list[list[float]]:
    """mIoU (redundancy thresholds, ambiguity thresholds); CLIP encodes every scene once."""
    model = build()
    assert model.words is not None
    shape = len(redundancies), len(ambiguities)
    confusion = np.zeros((*shape, len(CLASSES), len(CLASSES)), dtype=np.int64)
    for seed in tqdm(seeds, desc="sweeping thresholds", unit="scene"):
        scene = draw_scene(seed)
        encoded = model.encode(inputs(scene.image))
        for i, redundancy in enumerate(redundancies):
            for j, ambiguity in enumerate(ambiguities):
                (result,) = model.segment(encoded, model.words, redundancy, ambiguity)
                confusion[i, j] += confusion_of(result["label_map"].cpu().numpy(), scene.labels)
    return [[miou(cell) for cell in line] for line in confusion]


def swept_seeds(scenes: int | None = None) -> dict[str, range]:
    """Of both sets, or of the first scenes of each."""
    return {"other scenes": TUNING_SEEDS[:scenes], "scenes_val": VAL_SEEDS[:scenes]}


def thresholds_facts(scenes: int | None = None) -> dict:
    """What is swept, and the mIoU of a few cells on a few of the scenes."""
    head = build().head
    few, redundancies, ambiguities = PROBED
    return {
        "pair": [str(head.redundancy_threshold), str(head.ambiguity_threshold)],
        "thresholds": [[*map(str, REDUNDANCY_THRESHOLDS)], [*map(str, AMBIGUITY_THRESHOLDS)]],
        "seeds": {name: [seeds[0], seeds[-1]] for name, seeds in swept_seeds(scenes).items()},
        "probed": {
            name: sweep(seeds, redundancies, ambiguities)
            for name, seeds in swept_seeds(few).items()
        },
    }


def draw_thresholds(path: Path, scenes: int | None = None) -> None:
    """mIoU over both thresholds, on scenes to choose them on and on the embedded benchmark.

    Args:
        scenes: how many of each; None: all.
    """
    head = build().head
    spot = (
        AMBIGUITY_THRESHOLDS.index(head.ambiguity_threshold) - 0.5,
        REDUNDANCY_THRESHOLDS.index(head.redundancy_threshold) - 0.5,
    )
    figure, grid = figure_of(1, 2, 3.9, sharey=True)
    swept = {}
    for axes, (name, seeds) in zip(grid, swept_seeds(scenes).items(), strict=True):
        swept[name] = sweep(seeds, REDUNDANCY_THRESHOLDS, AMBIGUITY_THRESHOLDS)
        values = np.array(swept[name])
        axes.imshow(values, cmap="viridis", aspect="auto")
        middle = (values.min() + values.max()) / 2
        for (i, j), value in np.ndenumerate(values):
            color = "black" if value > middle else "white"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=9, color=color)
        axes.add_patch(Rectangle(spot, 1, 1, fill=False, color="red", linewidth=2.5))
        axes.set_xticks(range(len(AMBIGUITY_THRESHOLDS)), AMBIGUITY_THRESHOLDS)
        axes.set_yticks(range(len(REDUNDANCY_THRESHOLDS)), REDUNDANCY_THRESHOLDS)
        axes.tick_params(labelsize=9)
        axes.set_xlabel("AMBIGUITY_THRESHOLD", fontsize=9)
        axes.set_title(f"{name}: {len(seeds)}, seeds {seeds[0]} to {seeds[-1]}", fontsize=9)
    grid[0].set_ylabel("REDUNDANCY_THRESHOLD", fontsize=9)
    figure.suptitle(
        "mIoU in percent, ClearCLIP + FreeCP; red: configs/scenes/base.yaml", fontsize=10
    )
    save(image_of(figure), path, {**thresholds_facts(scenes), "swept": swept})


def literals(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Strings and numbers in code, without docstrings."""
    for node in nodes:
        if isinstance(node, ast.Constant):
            yield repr(node.value)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from literals([*ast.iter_child_nodes(node)])


def web_sources() -> tuple[int, dict[str, str]]:
    """The seed of the page's first example, and digests of what the page is made of.

    The page's code is read, not imported: that needs gradio, which settles where its files lie when
    it is first imported.
    """
    folder = Path(freecp_d2.__file__).parent / "cli" / "web"
    page, views = (ast.parse((folder / f"{name}.py").read_text()) for name in ("page", "views"))
    assigned = {ast.unparse(n.targets[0]): n.value for n in page.body if isinstance(n, ast.Assign)}
    built = [
        node
        for node in page.body
        if isinstance(node, ast.FunctionDef) and node.name == "build_page"
    ]
    shown = [*built, *(assigned[name] for name in ("INTRODUCTION", "SCENECLIP", "THEME"))]
    sources = {
        "page.css": (folder / "page.css").read_text(),
        "page.js": (folder / "page.js").read_text(),
        "labels": "\n".join(literals(shown)),
        "views": "\n".join(literals([views])),
    }
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sources.items()}
    return ast.literal_eval(assigned["EXAMPLE_SEEDS"])[0], digests


def web_answer(seed: int) -> Answer:
    """What the page shows of a scene when it is opened."""
    predictor = FreeCPPredictor(CONFIG, model=build())
    freecp = predictor.cfg.MODEL.FREECP
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.png"
        Image.fromarray(draw_scene(seed).image).save(path)
        return SessionStore(predictor).show_example(
            str(path), list(CLASSES), freecp.REDUNDANCY_THRESHOLD, freecp.AMBIGUITY_THRESHOLD
        )


def web_facts() -> dict:
    """Of the page, and of the answer that stands on it."""
    seed, sources = web_sources()
    answer = web_answer(seed)
    both = answer.base, answer.purified
    return {
        "sources": sources,
        "example": seed,
        "threshold": str(answer.redundancy_threshold),
        "shares": [result.shares.tolist() for result in both],
        "consistency": answer.purified.consistency.tolist(),
        "removed": {one.name: one.beaten_by or one.stage for one in answer.purified.removed},
        "colors": [mean_color(np.array(picture_of(result))) for result in both],
    }


def draw_web(path: Path) -> None:
    """The page in a browser, by projects/Demo/screenshot.py."""
    missing = [name for name in ("gradio", "playwright") if find_spec(name) is None]
    if missing:
        print(
            f"{path}: not drawn, {' and '.join(missing)} missing: pip install {' '.join(missing)}"
        )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "web.png"
        command = [sys.executable, "projects/Demo/screenshot.py", "--output", str(taken)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode and "no chromium" in run.stderr:
            print(f"{path}: not drawn. {run.stderr.strip()}")
            return
        if run.returncode:
            sys.exit(f"{path}: not drawn.\n{run.stderr}")
        with Image.open(taken) as picture:
            save(picture, path, web_facts())


FACTS: dict[str, Callable[[], dict]] = {
    "gallery": gallery_facts,
    "maps": maps_facts,
    "stages": stages_facts,
    "thresholds": thresholds_facts,
    "web": web_facts,
}
DRAWN: dict[str, Callable[..., None]] = {
    "gallery": draw_gallery,
    "maps": draw_maps,
    "stages": draw_stages,
    "thresholds": draw_thresholds,
    "web": draw_web,
}


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(DRAWN)
    parser.add_argument("pictures", nargs="*", metavar="NAME", help=f"of {names}")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/pictures", metavar="FOLDER")
    parser.add_argument("--scenes", type=int, metavar="N", help="sweep N scenes only")
    args = parser.parse_args()
    unknown = set(args.pictures) - set(DRAWN)
    if unknown:
        parser.error(f"no picture {', '.join(sorted(unknown))}; choose of {names}")
    for name in args.pictures or DRAWN:
        options = {"scenes": args.scenes} if name == "thresholds" else {}
        DRAWN[name](args.output / f"{name}.png", **options)


if __name__ == "__main__":
    main()
