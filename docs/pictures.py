"""Draw the pictures of the documentation.

    python docs/pictures.py                 # all of them, into docs/pictures; some minutes
    python docs/pictures.py gallery maps    # only these

They show the synthetic scenes of freecp_d2.data.scenes and the small CLIP beside them, so
that nothing is downloaded. Run it from the repository's root.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from freecp_d2 import FreeCP, load_config, ops
from freecp_d2.data.scenes import CLASSES, COLORS, VAL_SEEDS, draw_scene
from freecp_d2.evaluation.metrics import class_ious, confusion_matrix, mean
from freecp_d2.purification.stages import CROP_SIZE, class_activation_maps
from freecp_d2.sliding_window import upsample

CONFIG = "configs/scenes/clearclip.yaml"
GALLERY_SEEDS = range(0, 200, 40)
"""Scenes of the gallery: at equal distances in `scenes_val`, not picked by their results."""
SCENE = 118
"""The scene of maps.png and stages.png: both stages have something to remove there."""
CLASS, LOOK_ALIKE = "mountain", "rock"
"""What stages.png follows through `SCENE`, and what is taken for it."""
MAPPED = ("sky", "sand", "mountain", "bird", "rock", "snow")
"""The classes of maps.png."""
PATCH = (6, 16)
"""Row and column of the patch whose affinity stages.png shows."""
TUNING_SEEDS = range(950000, 950100)
"""Scenes to choose thresholds on: no `scenes_val`, and no scene that SceneCLIP was trained on."""
REDUNDANCY_THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.065, 0.08, 0.1, 0.15)
AMBIGUITY_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

GREEN, ORANGE, RED = "#2a9d3a", "#d98200", "#c62828"
PALETTE = np.array(COLORS, dtype=np.uint8)


def build(*options: object) -> FreeCP:
    """The embedded model, which gives label maps."""
    opts = [*map(str, options), "MODEL.FREECP.OUTPUT", "label_map"]
    return FreeCP(load_config(CONFIG, opts)).eval()


def inputs(image: np.ndarray) -> list[dict]:
    """A batch of one (H, W, 3) uint8 RGB image as the model takes it."""
    return [{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}]


def miou(confusion: np.ndarray) -> float:
    """In percent, over the classes present or predicted."""
    return 100 * mean(class_ious(confusion))


def confusion_of(labels: Tensor, truth: np.ndarray) -> np.ndarray:
    """Of one scene."""
    return confusion_matrix(labels.cpu().numpy(), truth.astype(int), len(CLASSES), 255)


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 256 colours, a third of the size of one of all colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]
    plt.close(figure)
    picture = Image.fromarray(pixels)
    palette = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    picture.quantize(palette=palette).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def bare(axes: Axes, title: str = "", **style: object) -> None:
    """No ticks, and a title."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, **style)


def draw_map(
    axes: Axes, values: Tensor, size: tuple[int, int], title: str, **style: object
) -> None:
    """A map (h, w) in [0, 1], enlarged to the image as the method does."""
    large = upsample(values[None].float(), size)[0].cpu().numpy()
    axes.imshow(large, cmap="magma", vmin=0, vmax=1)
    bare(axes, title, **style)


def boxes_of(values: Tensor) -> list[list[int]]:
    """Boxes (x0, y0, x1, y1) in patches around what of a map (h, w) is above 0.4 of its maximum."""
    return ops.component_boxes(values[None])[:, 1:].tolist()


def gallery(path: Path) -> None:
    """Scene, base method, FreeCP and ground truth, with the classes of each row."""
    ours, base = build(), build("MODEL.FREECP.ENABLED", False)
    ratios = [1, 1, 1, 1, 0.62]
    figure, grid = plt.subplots(
        len(GALLERY_SEEDS),
        5,
        figsize=(12, 2.05 * len(GALLERY_SEEDS)),
        layout="constrained",
        width_ratios=ratios,
    )
    for row, seed in zip(grid, GALLERY_SEEDS, strict=True):
        scene = draw_scene(seed)
        label_maps = [model(inputs(scene.image))[0]["label_map"] for model in (base, ours)]
        scores = [miou(confusion_of(labels, scene.labels)) for labels in label_maps]
        maps = [*(labels.cpu().numpy() for labels in label_maps), scene.labels]
        titles = [
            f"scene {seed}",
            f"ClearCLIP alone: mIoU {scores[0]:.0f}",
            f"ClearCLIP + FreeCP: mIoU {scores[1]:.0f}",
            "ground truth",
        ]
        for axes, picture, title in zip(
            row, [scene.image, *(PALETTE[labels] for labels in maps)], titles, strict=False
        ):
            axes.imshow(picture)
            bare(axes, title)
        shares = [np.bincount(m.ravel(), minlength=len(CLASSES)) / m.size for m in maps]
        present = set(np.flatnonzero(shares[2]))
        largest = np.argsort(-np.max(shares, axis=0), kind="stable")
        wrong = [i for i in largest if i not in present and max(s[i] for s in shares) >= 0.01]
        shown = sorted(present, key=lambda i: -shares[2][i]) + wrong[: 11 - len(present)]
        row[4].axis("off")
        legend = row[4].legend(
            handles=[Patch(color=PALETTE[i] / 255, label=CLASSES[i]) for i in shown],
            loc="center left",
            fontsize=8,
            frameon=False,
            borderpad=0,
            labelspacing=0.35,
        )
        for text, index in zip(legend.get_texts(), shown, strict=True):
            text.set_fontweight("bold" if index in present else "normal")
    save(figure, path)


class Purified:
    """Every intermediate result of the method on one scene, seen as one window."""

    def __init__(self, seed: int) -> None:
        self.scene = draw_scene(seed)
        self.model = build("MODEL.FREECP.WINDOW", 0)
        encoded = self.model.encode(inputs(self.scene.image))
        (batch,) = encoded.batches
        model, words, features = self.model, self.model.words, batch.features
        assert words is not None and features is not None
        purified = model.head(batch.pixels, features, words.text, words.descriptions, model.encoder)
        self.size = self.scene.image.shape[:2]
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
        self.affinity = affinity @ affinity
        self.grid = features.grid
        self.patch = model.encoder.patch_size[0]
        self.labels = model.segment(encoded, words)[0]["label_map"].cpu().numpy()
        self.threshold = model.head.redundancy_threshold

    def fate(self, index: int) -> tuple[str, str]:
        """What became of a class, and the colour that says so."""
        if self.kept[index]:
            return "stays", GREEN
        if self.kept_redundancy[index]:
            return f"look-alike of {CLASSES[int(self.beaten_by[index])]}", ORANGE
        return "redundant", RED


def maps(path: Path) -> None:
    """Class activation maps before and after refinement."""
    result = Purified(SCENE)
    figure, grid = plt.subplots(
        2, len(MAPPED) + 1, figsize=(2.05 * (len(MAPPED) + 1), 4), layout="constrained"
    )
    grid[0, 0].imshow(result.scene.image)
    bare(grid[0, 0], f"scene {SCENE}")
    grid[1, 0].axis("off")
    text = "above: probability\nbelow: refined\n\nGreen: the class stays.\nOrange, red: removed."
    grid[1, 0].text(0, 0.5, text, va="center", fontsize=9, transform=grid[1, 0].transAxes)
    for column, name in zip(grid[:, 1:].T, MAPPED, strict=True):
        index = CLASSES.index(name)
        draw_map(column[0], result.probabilities[index], result.size, name)
        fate, color = result.fate(index)
        title = f"{float(result.consistency[index]):.2f}: {fate}"
        draw_map(column[1], result.refined[index], result.size, title, color=color)
    save(figure, path)


def stages(path: Path) -> None:
    """The method step by step on one class of one scene."""
    result = Purified(SCENE)
    index, rival = CLASSES.index(CLASS), CLASSES.index(LOOK_ALIKE)
    figure, grid = plt.subplots(3, 3, figsize=(10.5, 8.6), layout="constrained")
    scene, probability, boxes, affinity, refined, bars, rivals, crop, labels = grid.flat

    def frame(axes: Axes, box: Sequence[int], color: str) -> None:
        """Draw a box (x0, y0, x1, y1) of patches."""
        x0, y0, x1, y1 = (side * result.patch for side in box)
        rectangle = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=1.8)
        axes.add_patch(rectangle)

    row, column = PATCH
    scene.imshow(result.scene.image)
    bare(scene, f"scene {SCENE}")
    draw_map(probability, result.probabilities[index], result.size, f'1  probability of "{CLASS}"')
    draw_map(boxes, result.normalized[index], result.size, "2  boxes around its strong spots")
    for box in boxes_of(result.normalized[index]):
        frame(boxes, box, "cyan")

    weights = result.affinity[row * result.grid[1] + column].view(result.grid)
    draw_map(affinity, weights / weights.max(), result.size, "3  affinity of the red patch")
    for axes in (scene, affinity):
        frame(axes, (column, row, column + 1, row + 1), "red")
    draw_map(refined, result.refined[index], result.size, f'4  "{CLASS}", refined')

    order = result.consistency.argsort(descending=True, stable=True).tolist()[:10][::-1]
    bars.barh(
        [CLASSES[i] for i in order],
        [float(result.consistency[i]) for i in order],
        color=[result.fate(i)[1] for i in order],
    )
    bars.axvline(result.threshold, color="black", linestyle="--", linewidth=1)
    bars.tick_params(labelsize=8)
    bars.set_title("5  consistency, and its threshold", fontsize=10)

    rivals.imshow(result.scene.image)
    bare(rivals, f'6  boxes of "{CLASS}" and "{LOOK_ALIKE}"')
    disputed = boxes_of(result.refined[[index, rival]].mean(dim=0))
    for box in disputed:
        frame(rivals, box, "cyan")
    largest = max(disputed, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    frame(rivals, largest, "red")
    x0, y0, x1, y1 = (side * result.patch for side in largest)
    seen = torch.nn.functional.interpolate(
        result.pixels[:, :, y0:y1, x0:x1], CROP_SIZE, mode="bilinear", align_corners=False
    )
    model = result.model
    assert model.words is not None
    similarity = model.encoder.encode_cls(seen) @ model.words.descriptions[[index, rival]].T
    ours, other = (model.encoder.logit_scale * similarity[0]).tolist()
    rgb = (seen[0] * model.normalize.std + model.normalize.mean).round().clamp(0, 255)
    crop.imshow(rgb.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    bare(crop, f"CLIP sees the red box: {CLASS} {ours:.1f}, {LOOK_ALIKE} {other:.1f}")

    labels.imshow(PALETTE[result.labels])
    bare(labels, "7  label map")
    labels.legend(
        handles=[Patch(color=PALETTE[i] / 255, label=CLASSES[i]) for i in np.unique(result.labels)],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=4,
        fontsize=8,
        frameon=False,
        handlelength=1,
        columnspacing=1,
    )
    save(figure, path)


def sweep(model: FreeCP, seeds: range) -> np.ndarray:
    """mIoU (redundancy thresholds, ambiguity thresholds); CLIP encodes every scene once."""
    assert model.words is not None
    shape = len(REDUNDANCY_THRESHOLDS), len(AMBIGUITY_THRESHOLDS)
    confusion = np.zeros((*shape, len(CLASSES), len(CLASSES)), dtype=np.int64)
    for seed in tqdm(seeds, desc="sweeping thresholds", unit="scene"):
        scene = draw_scene(seed)
        encoded = model.encode(inputs(scene.image))
        for i, redundancy in enumerate(REDUNDANCY_THRESHOLDS):
            for j, ambiguity in enumerate(AMBIGUITY_THRESHOLDS):
                (result,) = model.segment(encoded, model.words, redundancy, ambiguity)
                labels = result["label_map"]
                confusion[i, j] += confusion_of(labels, scene.labels)
    return np.array([[miou(cell) for cell in line] for line in confusion])


def thresholds(path: Path, scenes: int | None = None) -> None:
    """mIoU over both thresholds, on scenes to choose them on and on the embedded benchmark.

    Args:
        scenes: how many of each; None: all.
    """
    model = build()
    chosen = model.head.redundancy_threshold, model.head.ambiguity_threshold
    sets = {"other scenes": TUNING_SEEDS[:scenes], "scenes_val": VAL_SEEDS[:scenes]}
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axes, (name, seeds) in zip(grid, sets.items(), strict=True):
        values = sweep(model, seeds)
        axes.imshow(values, cmap="viridis", aspect="auto")
        middle = (values.min() + values.max()) / 2
        for (i, j), value in np.ndenumerate(values):
            color = "black" if value > middle else "white"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=9, color=color)
        spot = (
            AMBIGUITY_THRESHOLDS.index(chosen[1]) - 0.5,
            REDUNDANCY_THRESHOLDS.index(chosen[0]) - 0.5,
        )
        axes.add_patch(Rectangle(spot, 1, 1, fill=False, color="red", linewidth=2.5))
        axes.set_xticks(range(len(AMBIGUITY_THRESHOLDS)), AMBIGUITY_THRESHOLDS)
        axes.set_yticks(range(len(REDUNDANCY_THRESHOLDS)), REDUNDANCY_THRESHOLDS)
        axes.set_xlabel("AMBIGUITY_THRESHOLD")
        axes.set_title(f"{name}: {len(seeds)}, seeds {seeds[0]} to {seeds[-1]}", fontsize=10)
    grid[0].set_ylabel("REDUNDANCY_THRESHOLD")
    figure.suptitle(
        "mIoU in percent, ClearCLIP + FreeCP; red: configs/scenes/base.yaml", fontsize=11
    )
    save(figure, path)


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["gallery", "maps", "stages", "thresholds"]
    parser.add_argument("pictures", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), metavar="FOLDER")
    parser.add_argument("--scenes", type=int, metavar="N", help="sweep N scenes only")
    args = parser.parse_args()
    unknown = set(args.pictures) - set(names)
    if unknown:
        parser.error(f"no picture {', '.join(sorted(unknown))}; choose of {', '.join(names)}")
    for name in args.pictures or names:
        options = {"scenes": args.scenes} if name == "thresholds" else {}
        globals()[name](args.output / f"{name}.png", **options)


if __name__ == "__main__":
    main()
