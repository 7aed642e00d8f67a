"""What gpu_report.py measures in processes of its own: operators, speed, launches, memory.

A part is a generator of what it knows so far, as JSON can have it. What it gave last is what the
report has of it, should it be stopped or fail.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from encoders import METHOD, SceneEncoder, bare_forward, class_names, normalize, pace_model, scene
from inputs import (
    AMBIGUITY_THRESHOLD,
    DIMENSION,
    REDUNDANCY_THRESHOLD,
    SEED,
    Inputs,
    Sizes,
    image_windows,
    one_window,
)
from ops import measure_operators
from rounds import Timed, interleaved, milliseconds, ratio, spread
from torch import Tensor
from transcription import dense_features, segment
from whole_image import whole_image_model

from freecp_d2 import FreeCP
from freecp_d2.clip import DenseCLIP, DenseFeatures
from freecp_d2.purification import PurificationHead
from freecp_d2.sliding_window import windows_of

BATCHES, QUICK_BATCHES = {1: 16, 16: 96}, {1: 16, 3: 8}
"""Images at once -> windows at once (TEST.IMS_PER_BATCH, MODEL.FREECP.BATCH_SIZE)."""
TRANSCRIBED = 2
"""So many images of a batch are transcribed, which takes them one by one."""
MEMORY = ((1, 1), (1, 4), (1, 16), (2, 16), (4, 16), (4, 24), (8, 48), (16, 48), (16, 96))
"""Images and windows at once whose memory is measured, from the least to the most."""
LEAST_ROUNDS = 3
"""As many as Sizes says, or fewer where time is short, but no fewer than these."""


class Clock:
    """Seconds that a part has."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def rounds(self, seconds: float, share: float, most: int) -> int:
        """How many rounds of `seconds` fit into a share of what is left; at least LEAST_ROUNDS."""
        return max(min(int(share * self.left / seconds), most), LEAST_ROUNDS)


class Replay(SceneEncoder):
    """SceneCLIP asked once: later it gives the same answers in the same order, without a wait.

    Attributes:
        dense_cost, cls_cost: run for their cost alone, on the same images.
    """

    def __init__(self, dimension: int, device: torch.device):
        super().__init__(dimension, device)
        self.dense_cost: Callable[[Tensor], object] | None = None
        self.cls_cost: Callable[[Tensor], object] | None = None
        self.answers: list = []
        self.asked = 0

    def again(self) -> None:
        """Answer from the first question on."""
        self.asked = 0

    def forward(self, images: Tensor) -> DenseFeatures:
        """As SceneEncoder's."""
        if self.dense_cost is not None:
            self.dense_cost(images)
        return self._answer(super().forward, images)

    def encode_cls(self, images: Tensor) -> Tensor:
        """As SceneEncoder's."""
        if self.cls_cost is not None:
            self.cls_cost(images)
        return self._answer(super().encode_cls, images)

    def _answer(self, ask: Callable, images: Tensor):
        if self.asked == len(self.answers):
            self.answers.append((images.shape, ask(images)))
        shape, answer = self.answers[self.asked]
        if shape != images.shape:
            raise RuntimeError(f"question {self.asked} was {shape} before, and is {images.shape}")
        self.asked += 1
        return answer


def scenes(sizes: Sizes, count: int) -> list[Tensor]:
    """Images (3, H, W) uint8."""
    return [scene(SEED + i, *sizes.image) for i in range(count)]


def windows(sizes: Sizes, images: list[Tensor]) -> Tensor:
    """The windows (B, 3, H, W) of all images, normalised."""
    return torch.stack(
        [
            normalize(image)[:, w.rows, w.columns]
            for image in images
            for w in windows_of(0, sizes.image, sizes.window, sizes.stride)
        ]
    )


def forget(device: torch.device) -> None:
    """Free what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def operators(sizes: Sizes, quick: bool, device: torch.device, clock: Clock) -> Iterator[dict]:
    """Every operator's time, bandwidth, matrix rate and memory; `refine` by both products.

    The windows of an image and a large one, with the classes of COCO-Stuff first.
    """
    encoder, names = SceneEncoder(DIMENSION, device), class_names(max(sizes.classes))
    few, some, usual, many = sizes.classes
    cases: list[dict] = []
    slowest = 0.0
    plan = [(None, usual), (sizes.grids[-1], usual), (None, many), (sizes.grids[-1], many)]
    plan += [(None, few), (None, some), *((grid, usual) for grid in sizes.grids[:-1])]
    for grid, classes in plan[:3] if quick else plan:
        if clock.left < 1.5 * slowest:
            yield {"cases": cases, "shortened": True}
            return
        start = time.monotonic()
        images = image_windows(sizes) if grid is None else one_window(grid)
        case: dict = {"windows": len(images), "side": images.shape[2], "classes": classes}
        try:
            inputs = Inputs(encoder, images, names)
            case = measure_operators(inputs, classes, sizes, quick, plain=True)
            del inputs
        except torch.OutOfMemoryError:
            case["error"] = "out of memory"
        forget(device)
        slowest = max(slowest, time.monotonic() - start)
        cases.append(case)
        yield {"cases": cases}


@dataclass(frozen=True)
class Setting:
    """How images are segmented: precision, images and windows at once, MODEL.FREECP.COMPILE."""

    precision: str
    images: int
    windows_at_once: int
    cuda_graphs: bool = False

    def model(self, sizes: Sizes, encoder: Replay) -> FreeCP:
        """FreeCP with `encoder`, to be used until it is asked for again."""
        model = cached_model(sizes, encoder.device, self.cuda_graphs)
        model.encoder, model.batch_size = encoder, self.windows_at_once
        return model


@cache
def cached_model(sizes: Sizes, device: torch.device, cuda_graphs: bool) -> FreeCP:
    """FreeCP whose words, which take seconds, are encoded once."""
    encoder, keys = Replay(DIMENSION, device), {"MODEL.FREECP.COMPILE": cuda_graphs}
    return whole_image_model(sizes, sizes.classes[2], encoder, keys)


def settings_of(quick: bool, device: torch.device) -> list[Setting]:
    """What is measured; CUDA graphs, which may fail in ways of their own, last."""
    batches = QUICK_BATCHES if quick else BATCHES
    first, second = ([Setting(p, *batch) for batch in batches.items()] for p in precisions(device))
    if device.type != "cuda":
        return [first[0], second[1]]
    return [*first, *second, *(replace(setting, cuda_graphs=True) for setting in first)]


def precisions(device: torch.device) -> tuple[str, str]:
    """What is measured: first what MODEL.CLIP.PRECISION "auto" is on a GPU."""
    return ("fp16", "bf16") if device.type == "cuda" else ("fp32", "bf16")


def speed(sizes: Sizes, quick: bool, device: torch.device, clock: Clock) -> Iterator[dict]:
    """Images a second of FreeCP, of the bare forward and of the transcription; the head's share."""
    cases: list[dict] = []
    plan = settings_of(quick, device)
    for done, setting in enumerate(plan):
        if done and clock.left < 10:
            yield {"cases": cases, "shortened": True}
            return
        case = dataclasses.asdict(setting)
        try:
            case |= _speed(sizes, quick, device, setting, clock, 1 / (len(plan) - done))
        except torch.OutOfMemoryError:
            case["error"] = "out of memory"
        forget(device)
        cases.append(case)
        yield {"cases": cases}


def _speed(
    sizes: Sizes,
    quick: bool,
    device: torch.device,
    setting: Setting,
    clock: Clock,
    share: float,
) -> dict:
    """One case, in a share of what is left of the time."""
    classes, count, at_once = sizes.classes[2], setting.images, setting.windows_at_once
    vit = pace_model(quick, 224, device, setting.precision)
    pace = DenseCLIP(vit, METHOD, cuda_graphs=setting.cuda_graphs)
    bare = pace_model(quick, sizes.window, device, setting.precision)
    images = scenes(sizes, count)
    pixels = windows(sizes, images).to(device)
    batches = pixels.split(at_once)
    ours = Replay(DIMENSION, device)
    model = setting.model(sizes, ours)
    words = model.words
    given = [{"image": image} for image in images]
    head = PurificationHead(
        REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD, cuda_graphs=setting.cuda_graphs
    )
    features = Inputs(SceneEncoder(DIMENSION, device), pixels, class_names(classes)).features
    of_head, of_transcription = Replay(DIMENSION, device), Replay(DIMENSION, device)
    transcribed = images[:TRANSCRIBED]
    labels: dict[str, list[Tensor]] = {}

    def freecp(crops: bool) -> None:
        ours.again()
        ours.dense_cost, ours.cls_cost = pace, pace.encode_cls if crops else None
        labels["freecp"] = [result["label_map"] for result in model(given)]

    def head_alone() -> None:
        of_head.again()
        head(pixels, features, words.text, words.descriptions, of_head)

    def transcription() -> None:
        of_transcription.again()
        of_transcription.dense_cost = partial(dense_features, vit, METHOD)
        of_transcription.cls_cost = pace.encode_cls
        labels["transcription"] = [
            segment(
                *(image.to(device), words.text, words.descriptions, of_transcription),
                *(REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD, 0),
                *(sizes.window, sizes.stride, sizes.image),
            )[1]
            for image in transcribed
        ]

    runs = {
        "bare": Timed(lambda: [bare_forward(bare, batch) for batch in batches]),
        "dense": Timed(lambda: [pace(batch) for batch in batches]),
        "freecp": Timed(partial(freecp, True)),
        "without_crops": Timed(partial(freecp, False)),
        "head": Timed(head_alone),
        "transcription": Timed(transcription),
    }
    interleaved(runs, 0, device)  # kernels are compiled, questions are answered
    start = time.monotonic()
    interleaved(runs, 0, device)
    rounds = clock.rounds(time.monotonic() - start, 0.9 * share, sizes.rounds)
    samples = interleaved(runs, rounds, device)
    seconds = {name: sample["seconds"] for name, sample in samples.items()}
    done = {name: len(transcribed) if name == "transcription" else count for name in runs}
    rates = {name: [done[name] / s for s in seconds[name]] for name in runs if name != "head"}
    same = torch.stack(
        [a == b for a, b in zip(labels["freecp"], labels["transcription"], strict=False)]
    )
    return {
        "rounds": rounds,
        "windows": len(pixels),
        "classes": classes,
        "crops": sum(shape[0] for shape, answer in ours.answers if isinstance(answer, Tensor)),
        "ms": {name: milliseconds(seconds[name]) for name in runs},
        "images_per_s": {name: spread(rate) for name, rate in rates.items()},
        "head_over_bare": ratio(seconds["head"], seconds["bare"]),
        "freecp_over_bare": ratio(seconds["freecp"], seconds["bare"]),
        "images_per_s_over_transcription": ratio(rates["freecp"], rates["transcription"]),
        "label_agreement_with_transcription": same.float().mean().item(),
    }


LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")
LAUNCHES += ("cudaGraphLaunch",)
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of the driver, or with these before "Ex" and the like. The profiler itself waits for the
device, so that cudaDeviceSynchronize does not count."""


def launches(sizes: Sizes, quick: bool, device: torch.device, clock: Clock) -> Iterator[dict]:
    """How many kernels FreeCP launches, and how often the host waits, by torch.profiler."""
    cases: list[dict] = []
    for setting in settings_of(quick, device):
        if setting.precision != precisions(device)[0]:
            continue
        vit = pace_model(quick, 224, device, setting.precision)
        pace = DenseCLIP(vit, METHOD, cuda_graphs=setting.cuda_graphs)
        encoder = Replay(DIMENSION, device)
        model = setting.model(sizes, encoder)
        given = [{"image": image} for image in scenes(sizes, setting.images)]
        case = dataclasses.asdict(setting)
        for name, costs in (
            ("outside_of_the_encoder", (None, None)),
            ("all", (pace, pace.encode_cls)),
        ):
            encoder.dense_cost, encoder.cls_cost = costs

            def run(encoder=encoder, model=model, given=given) -> None:
                encoder.again()
                model(given)

            case[name] = calls_of_the_driver(run, device)
            if not case[name]["launches"]:
                raise RuntimeError("the profiler saw no launch; may this user profile the GPU?")
        cases.append(case)
        yield {"cases": cases}


def calls_of_the_driver(run: Callable[[], object], device: torch.device) -> dict:
    """Launches and waits of a call, the second one."""
    run()
    torch.cuda.synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    return count_calls({event.key: event.count for event in profile.key_averages()})


def count_calls(counts: dict[str, int]) -> dict:
    """Launches and waits among events, and all of CUDA's calls by name."""
    calls = {n: c for n, c in counts.items() if n.startswith(("cuda", "cuLaunch", "cuMem"))}
    waiting = {name: c for name, c in calls.items() if name in WAITS}
    launched = {name: c for name, c in calls.items() if name.startswith(LAUNCHES)}
    return {"launches": sum(launched.values()), "waits": sum(waiting.values()), "calls": calls}


def memory(sizes: Sizes, quick: bool, device: torch.device, clock: Clock) -> Iterator[dict]:
    """Peak memory of FreeCP by images and windows at once, at worst: every class stays."""
    card = torch.cuda.get_device_properties(device).total_memory
    precision, classes = precisions(device)[0], sizes.classes[2]
    settings = {"MODEL.FREECP.REDUNDANCY": False, "MODEL.FREECP.AMBIGUITY_THRESHOLD": 1.0}
    vit = pace_model(quick, 224, device, precision)
    words = SceneEncoder(vit.visual.output_dim, device)
    model = whole_image_model(sizes, classes, words, settings)
    model.encoder = DenseCLIP(vit, METHOD)
    cases: list[dict] = []
    known = {"precision": precision, "classes": classes, "card_bytes": card, "cases": cases}
    for count, model.batch_size in MEMORY:
        if cases and clock.left < 5:
            yield {**known, "shortened": True}
            return
        case: dict = {"images": count, "windows_at_once": model.batch_size}
        try:
            case |= peak(model, [{"image": image} for image in scenes(sizes, count)], device)
        except torch.OutOfMemoryError:
            case["error"] = "out of memory"
        forget(device)
        cases.append(case)
        yield known


def peak(model: Callable, given: list[dict], device: torch.device) -> dict:
    """Bytes that PyTorch's allocator had in use and reserved at most, weights included."""
    model(given[:1])  # cuBLAS's workspaces, compiled kernels
    forget(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    model(given)
    torch.cuda.synchronize(device)
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "seconds": time.perf_counter() - start,
    }


ON_A_CPU = {
    "launches": "a CPU launches no kernels; tests/test_launches.py counts them",
    "memory": "on a CPU tests/benchmarks/peak_memory.py measures it",
}
"""What of PARTS a GPU alone has, and what to look at instead."""
PARTS = {"operators": operators, "speed": speed, "launches": launches, "memory": memory}
