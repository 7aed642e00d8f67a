"""What is compared runs in turn, round after round in one process, and ratios are taken in a round.

So a machine that becomes slower or faster meanwhile changes no ratio.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from encoders import SceneEncoder, synchronize


@dataclass
class Timed:
    """What is timed: `run`, less the time that `encoder` spends on crops meanwhile."""

    run: Callable[[], object]
    encoder: SceneEncoder | None = None


def interleaved(
    runs: dict[str, Timed], rounds: int, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Of every run and round, after a warm-up.

    `seconds` without crops; `with_crops`, what they cost included; `crops`, how many; and `away`,
    what was taken out.
    """
    keys = ("seconds", "with_crops", "crops", "away")
    samples: dict[str, dict[str, list[float]]] = {name: {key: [] for key in keys} for name in runs}
    for round_ in range(-1, rounds):
        for name, timed in runs.items():
            if timed.encoder is not None:
                timed.encoder.reset()
            synchronize(device)
            start = time.perf_counter()
            timed.run()
            synchronize(device)
            seconds = time.perf_counter() - start
            encoder = timed.encoder
            away, crop_seconds, crops = (
                (encoder.away_seconds, encoder.crop_seconds, encoder.crops)
                if encoder
                else (0, 0, 0)
            )
            seconds -= away
            if round_ >= 0:
                values = (seconds, seconds + crop_seconds, crops, away)
                for key, value in zip(keys, values, strict=True):
                    samples[name][key].append(value)
    return samples


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    return spread([1000 * s for s in seconds])


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, round by round."""
    return spread([n / d for n, d in zip(numerator, denominator, strict=True)])


def slope(low: list[float], high: list[float], factor: float) -> dict[str, float]:
    """Median and quartiles of the log-log slope, when the size grows `factor`-fold."""
    return spread([math.log(b / a) / math.log(factor) for a, b in zip(low, high, strict=True)])


def grown(low: list[float], high: list[float], factor: float) -> dict[str, dict[str, float]]:
    """The ratio of times and the log-log slope."""
    return {"ratio": ratio(high, low), "slope": slope(low, high, factor)}
