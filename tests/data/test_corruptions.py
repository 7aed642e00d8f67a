"""What each corruption does to the statistics of an image."""

import numpy as np

from freecp_d2.data.corruptions import blur, contrast, noise

IMAGE = np.random.default_rng(0).integers(80, 176, (60, 50, 3)).astype(np.uint8)


def test_noise_has_its_spread_and_its_seed():
    added = noise(IMAGE, seed=3, std=10).astype(int) - IMAGE
    assert abs(added.mean()) < 0.5 and abs(added.std() - 10) < 0.5
    assert (noise(IMAGE, 3) == noise(IMAGE, 3)).all() and (noise(IMAGE, 3) != noise(IMAGE, 4)).any()


def test_blur_spreads_a_point_within_its_channel():
    point = np.zeros((21, 21, 3), np.uint8)
    point[10, 10, 1] = 255
    blurred = blur(point, sigma=1.0)
    assert not blurred[..., 0].any() and not blurred[..., 2].any()
    assert blurred[10, 10, 1] == round(255 / (2 * np.pi), 0) and blurred[10, 11, 1] > 0
    assert (blur(np.full_like(point, 9)) == 9).all()


def test_contrast_shrinks_about_the_mean():
    less = contrast(IMAGE, share=0.5)
    assert less.dtype == np.uint8
    assert abs(less.mean() - IMAGE.mean()) < 0.6
    assert abs(less.std() / IMAGE.std() - 0.5) < 0.02
