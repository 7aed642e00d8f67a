#!/usr/bin/env python
"""Train SceneCLIP, a small open_clip model, from scratch on synthetic scenes with captions only.

The one supervision is each scene's caption. Three losses come from it:

* contrastive: CLIP's loss between the CLS embeddings of the batch and the captions;
* tagging: the CLS embedding against the feature of every word of the vocabulary;
* dense: the same words against the patch features, computed by the very base methods that
  `freecp_d2` evaluates. Every patch has to be explained by some word of its own caption, and every
  word of the caption by some patches (multiple-instance pooling).

Half of the training images are two scenes side by side, so that a patch that copies its word from
the other half of the image is wrong: this keeps the patch features local.

    python projects/SceneCLIP/train.py

The weights go to output/sceneclip; --output freecp_d2/data/scenes/scene_clip.safetensors
replaces the committed ones.
"""

import argparse
import copy
import json
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_OUTPUT = ROOT / "output" / "sceneclip" / "scene_clip.safetensors"
sys.path.insert(0, str(ROOT))

from freecp_d2.clip import blocks  # noqa: E402
from freecp_d2.clip.methods import Trunk, base_method  # noqa: E402
from freecp_d2.data.scenes import CLASSES, DESCRIPTIONS, draw_scene  # noqa: E402
from freecp_d2.files import local_path, scratch_folder, whole_file  # noqa: E402
from freecp_d2.workers import begin_worker  # noqa: E402

CONFIG = local_path("freecp_d2://scenes/scene_clip.json")
TRAIN_SEED = 1_000_000
HELD_OUT_SEED = 900_000
MEAN = (122.771, 116.746, 104.094)
STD = (68.501, 66.632, 70.323)
CROP = (112, 112)
CANVASES = (((160, 208), 0.75), ((224, 288), 0.1), (CROP, 0.15))
"""Height and width of the training images, and how often each is drawn.

`CROP` shows a part of a scene, where not every word of the caption need be seen; the others show
nearly all of it."""
METHODS = ("maskclip", "sclip", "clearclip")
log = logging.getLogger("sceneclip")


def build_model() -> open_clip.CLIP:
    """The untrained model of scene_clip.json."""
    return open_clip.CLIP(**json.loads(CONFIG.read_text()))


# ---------------------------------------------------------------------------------------- scenes


def _render(task: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    seed, height, width = task
    scene = draw_scene(seed, height, width)
    return scene.image, scene.caption


def render_scenes(
    first_seed: int, count: int, height: int, width: int, folder: Path, workers: int
) -> tuple[np.ndarray, list[str]]:
    """Draw `count` scenes into a memory-mapped file under `folder`.

    Returns:
        images (count,height,width,3) uint8 RGB and their captions. Nothing else is kept of a scene.
    """
    path = folder / f"{first_seed}_{count}_{height}x{width}.npy"
    shape = (count, height, width, 3)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    captions = []
    tasks = ((first_seed + i, height, width) for i in range(count))
    start = time.time()
    with multiprocessing.get_context("fork").Pool(workers, begin_worker) as pool:
        for i, (image, caption) in enumerate(pool.imap(_render, tasks, chunksize=64)):
            images[i] = image
            captions.append(caption)
            if (i + 1) % 5000 == 0:
                eta = (time.time() - start) / (i + 1) * (count - i - 1)
                log.info("drew %d of %d scenes, ETA %.0f s", i + 1, count, eta)
    return images, captions


def words_of(caption: str) -> list[bool]:
    """Which words of the vocabulary a caption mentions."""
    padded = " " + caption.replace(",", " ") + " "
    return [f" {name} " in padded for name in CLASSES]


def sample_views(
    images: Tensor, size: tuple[int, int], share: Tensor, generator: torch.Generator
) -> Tensor:
    """Random crops, mirrored half of the time.

    Args:
        images: (B,H,W,3) uint8.
        size: height and width of the views.
        share: (B,) the share of the scene's height that a view shows, at most 1.

    Returns:
        (B,3,*size) float, 0-255.
    """
    batch, height, width, _ = images.shape
    aspect = (size[1] / size[0]) / (width / height)
    span_y, span_x = share, (share * aspect).clamp(max=1)
    mirror = (torch.rand(batch, generator=generator) < 0.5).float() * 2 - 1
    shift = torch.rand(2, batch, generator=generator) * 2 - 1
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = mirror * span_x
    theta[:, 1, 1] = span_y
    theta[:, 0, 2] = shift[0] * (1 - span_x)
    theta[:, 1, 2] = shift[1] * (1 - span_y)
    grid = F.affine_grid(theta.to(images.device), [batch, 3, *size], align_corners=False)
    pixels = images.permute(0, 3, 1, 2).float()
    return F.grid_sample(pixels, grid, align_corners=False, padding_mode="border")


def random_split(batch: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Which patches show a second scene: (B,rows,columns) bool, none in two thirds of the batch."""
    second = torch.zeros(batch, rows, columns, dtype=torch.bool)
    for i in range(batch // 3):
        if torch.rand((), generator=generator) < 0.5:
            second[i, :, _cut(columns, generator) :] = True
        else:
            second[i, _cut(rows, generator) :] = True
    return second


def _cut(cells: int, generator: torch.Generator) -> int:
    return int(torch.randint(cells // 3, cells - cells // 3 + 1, (), generator=generator))


# ----------------------------------------------------------------------------------------- model


def encode_trunk(visual: nn.Module, images: Tensor) -> Trunk:
    """All blocks but the last on normalised images (B,3,H,W) of any size."""
    grid = blocks.grid_of(visual, images)
    tokens = blocks.embed(visual, images, blocks.positional_embedding(visual, grid))
    *resblocks, last = visual.transformer.resblocks
    for block in resblocks:
        tokens = block(tokens)
    return Trunk(last, tokens, grid)


def encode_dense(visual: nn.Module, trunk: Trunk, method: str) -> Tensor:
    """Patch features of one base method, (B,N,D) of unit length."""
    z = base_method(method)().patches(trunk)
    return F.normalize((visual.ln_post(z) @ visual.proj).float(), dim=-1)


def encode_cls(visual: nn.Module, trunk: Trunk) -> Tensor:
    """CLS embedding of the ordinary stream, (B,D) of unit length."""
    x = trunk.last(trunk.tokens)
    return F.normalize((visual.ln_post(x[:, 0]) @ visual.proj).float(), dim=-1)


# ---------------------------------------------------------------------------------------- losses


def tagging_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Cross entropy of (B,V) logits against the words of each caption, evenly weighted."""
    target = words.float() / words.sum(1, keepdim=True)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def cover_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Every patch is explained by some word: (B,N,V) logits, (B,N,V) bool words of its caption."""
    log_p = logits.log_softmax(-1)
    return -log_p.masked_fill(~words, -1e4).logsumexp(-1).mean()


def recall_loss(logits: Tensor, words: Tensor, share: float) -> Tensor:
    """Every word is shown by some patches (multiple-instance pooling).

    Args:
        logits: (B,N,V) of the patches against the vocabulary.
        words: (B,V) bool, the words of the caption.
        share: the share of the patches that has to show a word.
    """
    top = max(1, round(share * logits.shape[1]))
    seen = logits.softmax(-1).topk(top, dim=1).values.mean(1)
    return -((seen + 1e-4).log() * words).sum() / words.sum().clamp(min=1)


# --------------------------------------------------------------------------------------- training


def random_phrase(name: str, generator: torch.Generator) -> str:
    """A template filled with the word, the bare word, or one of its descriptions."""
    draw = torch.rand((), generator=generator)
    sentences = DESCRIPTIONS[name]
    if draw < 0.25:
        return sentences[int(torch.randint(len(sentences), (), generator=generator))]
    if draw < 0.35:
        return name
    index = int(torch.randint(len(OPENAI_IMAGENET_TEMPLATES), (), generator=generator))
    return OPENAI_IMAGENET_TEMPLATES[index](name)


@torch.no_grad()
def class_features(model: open_clip.CLIP) -> Tensor:
    """80-template features of the vocabulary, (V,D) of unit length."""
    device = model.logit_scale.device
    features = []
    for name in CLASSES:
        tokens = open_clip.tokenize([template(name) for template in OPENAI_IMAGENET_TEMPLATES])
        encoded = model.encode_text(tokens.to(device), normalize=True)
        features.append(F.normalize(encoded.mean(0), dim=0))
    return torch.stack(features)


@torch.no_grad()
def presence(model: open_clip.CLIP, images: np.ndarray, captions: list[str]) -> dict[str, float]:
    """Zero-shot presence of every word in held-out scenes, from the CLS token.

    Returns:
        `map`: mean average precision over the words; `accuracy`: the share of the caption's words
        among as many best-scored words as the caption has.
    """
    device = model.logit_scale.device
    text = class_features(model)
    side = 224
    scores = []
    for i in range(0, len(images), 64):
        pixels = normalise(
            torch.from_numpy(images[i : i + 64]).to(device).permute(0, 3, 1, 2).float()
        )
        left = (pixels.shape[-1] - side) // 2
        views = [pixels[..., x : x + side] for x in (0, left, 2 * left)]
        scores.append(
            sum(encode_cls(model.visual, encode_trunk(model.visual, v)) for v in views) @ text.T
        )
    scores = torch.cat(scores).cpu()
    words = torch.tensor([words_of(caption) for caption in captions])
    hits = [
        words[i, scores[i].topk(int(words[i].sum())).indices].float().mean()
        for i in range(len(words))
    ]
    precisions = []
    for c in range(len(CLASSES)):
        ranked = words[scores[:, c].argsort(descending=True), c].float()
        if ranked.any():
            precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
            precisions.append((precision * ranked).sum() / ranked.sum())
    return {
        "map": float(torch.stack(precisions).mean()),
        "accuracy": float(torch.stack(hits).mean()),
    }


def normalise(pixels: Tensor) -> Tensor:
    """(B,3,H,W) of 0-255 to CLIP's input range."""
    mean = torch.tensor(MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(STD, device=pixels.device)[:, None, None]
    return (pixels - mean) / std


def save_weights(model: open_clip.CLIP, path: Path) -> None:
    """Write the fp16 state dict as safetensors, all or nothing."""
    state = {k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()}
    with whole_file(path) as part:
        save_file(state, part)


def train(args: argparse.Namespace) -> dict[str, float]:
    """Run the whole recipe; returns the presence figures."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    device = torch.device(args.device)
    with scratch_folder(Path(args.scratch), "freecp_train") as folder:
        shape = (args.height, args.width)
        images, captions = render_scenes(TRAIN_SEED, args.scenes, *shape, folder, args.workers)
        held_out = render_scenes(HELD_OUT_SEED, args.held_out, 224, 288, folder, args.workers)
        words = torch.tensor([words_of(caption) for caption in captions])

        model = build_model().to(device)
        nn.init.constant_(model.logit_scale, math.log(20))
        if args.init:
            model.load_state_dict(load_file(args.init))
        average = copy.deepcopy(model).eval().requires_grad_(False)
        decay, plain = [], []
        for name, parameter in model.named_parameters():
            (plain if parameter.ndim < 2 or "embedding" in name else decay).append(parameter)
        groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
        sizes, odds = zip(*CANVASES, strict=True)
        start, running, saved = time.time(), {}, time.time()
        for step in range(args.steps):
            progress = step / args.steps
            rate = min(1, (step + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate

            size = sizes[int(torch.multinomial(torch.tensor(odds), 1, generator=generator))]
            whole = size != CROP
            batch = args.batch if whole else 2 * args.batch
            chosen = torch.randint(len(images), (2, batch), generator=generator)
            where = random_split(batch, size[0] // 16, size[1] // 16, generator)
            double = where.flatten(1).any(1) if whole else torch.zeros(batch, dtype=torch.bool)
            where = (where & double[:, None, None]).to(device)
            share = torch.rand(batch, generator=generator)
            share = torch.where(double | (not whole), 0.4 + 0.5 * share, 0.85 + 0.15 * share)
            first, second = (
                sample_views(torch.from_numpy(images[i.numpy()]).to(device), size, share, generator)
                for i in chosen
            )
            pixel_where = where[:, None].repeat_interleave(16, 2).repeat_interleave(16, 3)
            pixels = normalise(torch.where(pixel_where, second, first))
            first_words, second_words = (words[i].to(device) for i in chosen)
            patches = where.flatten(1)[..., None]
            patch_words = torch.where(patches, second_words[:, None], first_words[:, None])

            phrases = [random_phrase(name, generator) for name in CLASSES]
            sentences = [
                captions[a] + (", " + captions[b] if two else "")
                for a, b, two in zip(*chosen.tolist(), double.tolist(), strict=True)
            ][: args.batch]
            tokens = open_clip.tokenize(phrases + sentences).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                text = model.encode_text(tokens, normalize=True).float()
                u = encode_trunk(model.visual, pixels)
                cls = encode_cls(model.visual, u)
                dense = [encode_dense(model.visual, u, method) for method in METHODS]
            scale = model.logit_scale.exp()
            vocabulary, sentence = text[: len(CLASSES)], text[len(CLASSES) :]
            pairs = scale * cls[: len(sentence)] @ sentence.T
            target = torch.arange(len(pairs), device=device)
            single = ~double.to(device)
            image_words = first_words | (second_words & ~single[:, None])
            losses = {
                "contrast": 0.25
                * (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)),
                "tagging": tagging_loss(scale * cls @ vocabulary.T, image_words),
            }
            for method, features in zip(METHODS, dense, strict=True):
                logits = scale * features @ vocabulary.T
                losses[method] = cover_loss(logits, patch_words)
                if whole:
                    recall = recall_loss(logits[single], first_words[single], args.recall_share)
                    losses[method] = losses[method] + recall
            loss = losses["contrast"] + losses["tagging"] + sum(losses[m] for m in METHODS) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(math.log(10), math.log(50))
                keep = min(0.998, (step + 1) / (step + 10))
                for a, b in zip(average.parameters(), model.parameters(), strict=True):
                    a.lerp_(b, 1 - keep)

            for name, value in losses.items():
                running[name] = running.get(name, 0) + value.item()
            if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
                eta = (time.time() - start) / (step + 1) * (args.steps - step - 1)
                shown = " ".join(f"{k} {v / args.log_every:.3f}" for k, v in running.items())
                log.info("step %d/%d %s ETA %.0f s", step + 1, args.steps, shown, eta)
                running = {}
            if time.time() - saved > 120:
                save_weights(average, args.output)
                saved = time.time()
        save_weights(average, args.output)
        figures = presence(average, *held_out)
    log.info("presence on %d held-out scenes: %s", args.held_out, figures)
    return figures


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="FILE")
    parser.add_argument("--init", type=Path, help="weights to go on from, instead of random ones")
    parser.add_argument("--steps", type=_at_least_one, default=4500)
    parser.add_argument("--batch", type=_at_least_one, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--recall-share", type=float, default=0.05, help="share of patches that must show a word"
    )
    parser.add_argument(
        "--scenes", type=_at_least_one, default=24000, help="training scenes to draw"
    )
    parser.add_argument(
        "--held-out", type=_at_least_one, default=300, help="scenes of the final figure"
    )
    parser.add_argument("--height", type=_at_least_one, default=192)
    parser.add_argument("--width", type=_at_least_one, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--workers", type=_at_least_one, default=os.cpu_count())
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="where scenes are kept")
    parser.add_argument("--log-every", type=_at_least_one, default=50)
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parse_args())
