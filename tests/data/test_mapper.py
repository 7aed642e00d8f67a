"""Images of every kind become (H, W, 3) uint8, bad files one-line errors."""

import itertools
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freecp_d2 import add_freecp_config
from freecp_d2.data.mapper import InferenceMapper, read_image, resize_shortest_edge


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(image: Image.Image, name: str = "image.png", **options) -> str:
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def read(path: str, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path, **options)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    return image


def gray3(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def test_rgb_and_bgr(pixels, save):
    path = save(Image.fromarray(pixels))
    np.testing.assert_array_equal(read(path), pixels)
    np.testing.assert_array_equal(read(path, format="BGR"), pixels[:, :, ::-1])


def test_alpha_is_dropped(pixels, save):
    alpha = pixels[:, :, :1]
    rgba = save(Image.fromarray(np.concatenate([pixels, alpha], axis=2)), "rgba.png")
    np.testing.assert_array_equal(read(rgba), pixels)
    la = save(Image.fromarray(pixels[:, :, :2]), "la.png")
    np.testing.assert_array_equal(read(la), gray3(pixels[:, :, 0]))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_palettes(pixels, save, transparency):
    image = Image.fromarray(pixels).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    path = save(image, **options)
    np.testing.assert_array_equal(read(path), np.asarray(image.convert("RGB")))


def test_gray_with_a_transparent_value(pixels, save):
    path = save(Image.fromarray(pixels[:, :, 0]), transparency=7)
    np.testing.assert_array_equal(read(path), gray3(pixels[:, :, 0]))


def test_one_bit(pixels, save):
    bits = pixels[:, :, 0] > 127
    path = save(Image.fromarray(bits))
    np.testing.assert_array_equal(read(path), gray3(bits.astype(np.uint8) * 255))


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_sixteen_bits_are_scaled_not_clipped(pixels, save, name):
    path = save(Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257), name)
    np.testing.assert_array_equal(read(path), gray3(pixels[:, :, 0]))


def test_thirty_two_bits_holding_sixteen(pixels, save):
    path = save(Image.fromarray(pixels[:, :, 0].astype(np.int32) * 257), "image.tif")
    np.testing.assert_array_equal(read(path), gray3(pixels[:, :, 0]))


def test_cmyk(pixels, save):
    image = Image.fromarray(pixels).convert("CMYK")
    np.testing.assert_array_equal(read(save(image, "image.tif")), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(pixels, save, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    np.testing.assert_array_equal(read(save(Image.fromarray(pixels), exif=exif)), turned)


def one_line(error: pytest.ExceptionInfo, path: str) -> str:
    message = str(error.value)
    assert path in message and "\n" not in message
    return message


def test_missing_file(tmp_path):
    path = str(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError) as error:
        read_image(path)
    assert "DETECTRON2_DATASETS" in one_line(error, path)


def damaged(kind: str, png: bytes) -> bytes:
    middle = len(png) // 2
    return {
        "empty": b"",
        "text": b"not an image",
        "header only": png[:20],
        "truncated": png[:middle],
        "corrupt": png[:middle] + bytes(b ^ 255 for b in png[middle:-30]) + png[-30:],
    }[kind]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *itertools.product(
            ["empty", "text", "header only", "truncated"], ["image.png", "image.tif", "image.jpg"]
        ),
        ("corrupt", "image.png"),  # the others have no checksum of their pixels
    ],
)
def test_damaged_file(pixels, save, tmp_path, kind, name):
    path = save(Image.fromarray(pixels), name)
    (tmp_path / name).write_bytes(damaged(kind, (tmp_path / name).read_bytes()))
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert "replace the file" in one_line(error, path)


def test_folder(tmp_path):
    with pytest.raises(ValueError) as error:
        read_image(tmp_path)
    one_line(error, str(tmp_path))


def test_floats(pixels, save):
    path = save(Image.fromarray(pixels[:, :, 0].astype(np.float32)), "image.tif")
    with pytest.raises(ValueError, match="floats") as error:
        read_image(path)
    one_line(error, path)


def test_decompression_bomb(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    path = tmp_path / "bomb.png"
    path.write_bytes(png)
    with pytest.raises(Image.DecompressionBombError) as error:
        read_image(path)
    one_line(error, str(path))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 120), st.integers(1, 200))
def test_resized_sizes(height, width, min_size, max_size):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    new = resize_shortest_edge(image, min_size, max_size).shape
    assert max(new[:2]) <= max_size and min(new[:2]) <= min_size
    short, long = sorted((height, width))
    scale = min(max_size / long, min_size / short)
    for old_side, new_side in zip((height, width), new[:2], strict=True):
        assert new_side == 1 or abs(new_side - old_side * scale) <= 0.5 + 1e-6


def test_resize_does_not_antialias(pixels):
    resized = resize_shortest_edge(pixels, 10, 2048)
    expected = cv2.resize(pixels, (15, 10), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resized, expected)
    assert resize_shortest_edge(pixels, 0, 5) is pixels


def configured(**keys) -> InferenceMapper:
    cfg = get_cfg()
    add_freecp_config(cfg)
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return InferenceMapper(cfg)


def test_mapper(pixels, save):
    path = save(Image.fromarray(pixels))
    record = {"file_name": path, "image_id": 7, "sem_seg_file_name": "x", "annotations": []}
    mapped = configured(MIN_SIZE_TEST=40)(record)
    assert record == {
        "file_name": path,
        "image_id": 7,
        "sem_seg_file_name": "x",
        "annotations": [],
    }
    image = mapped.pop("image")
    assert mapped == {"file_name": path, "image_id": 7, "height": 20, "width": 30}
    assert image.dtype == torch.uint8 and image.shape == (3, 40, 60)
    bgr = configured(MIN_SIZE_TEST=40, FORMAT="BGR")(record)["image"]
    torch.testing.assert_close(bgr, image.flip(0), atol=0, rtol=0)


@pytest.mark.parametrize("min_size", [0, 16])
def test_mapper_takes_one_pixel(save, min_size):
    path = save(Image.fromarray(np.full((1, 1, 3), 9, dtype=np.uint8)))
    mapped = configured(MIN_SIZE_TEST=min_size)({"file_name": path})
    side = max(min_size, 1)
    assert (mapped["image"] == 9).all() and mapped["image"].shape == (3, side, side)


def test_mapper_checks_the_size(pixels, save):
    path = save(Image.fromarray(pixels))
    with pytest.raises(ValueError) as error:
        configured()({"file_name": path, "height": 21, "width": 30})
    one_line(error, path)


@pytest.mark.parametrize(
    ("key", "value"), [("FORMAT", "L"), ("MIN_SIZE_TEST", -1), ("MAX_SIZE_TEST", 0)]
)
def test_mapper_checks_the_config(key, value):
    with pytest.raises(ValueError, match=f"INPUT.{key}"):
        configured(**{key: value})
