"""Damaged images, to measure what holds on them: noise, blur, and less contrast."""

from collections.abc import Callable

import numpy as np


def noise(image: np.ndarray, seed: int = 0, std: float = 25.0) -> np.ndarray:
    """Add independent Gaussian noise.

    Args:
        image: (H, W, 3) uint8, as for all of these.
        std: in grey levels of 255.
    """
    added = np.random.default_rng(seed).normal(0, std, image.shape)
    return _uint8(image + added)


def blur(image: np.ndarray, seed: int = 0, sigma: float = 2.0) -> np.ndarray:
    """Blur by a Gaussian of `sigma` pixels. The seed does not matter."""
    from scipy.ndimage import gaussian_filter

    return _uint8(gaussian_filter(image.astype(float), (sigma, sigma, 0)))


def contrast(image: np.ndarray, seed: int = 0, share: float = 0.4) -> np.ndarray:
    """Keep a share of each pixel's distance from the image's mean. The seed does not matter."""
    mean = image.mean(axis=(0, 1))
    return _uint8(mean + share * (image - mean))


CORRUPTIONS: dict[str, Callable[..., np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
}


def _uint8(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
