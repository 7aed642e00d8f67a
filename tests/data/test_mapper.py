"""Images of every kind become (H, W, 3) uint8, bad files one-line errors."""

import io
import itertools
import logging
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freecp_d2 import add_freecp_config
from freecp_d2.data import images
from freecp_d2.data.images import load_label_map, read_image, resize_shortest_edge, to_pixels
from freecp_d2.data.mapper import InferenceMapper, ground_truth


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


def said(caplog, path: str) -> list[str]:
    """The warnings that name a file."""
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return [message for message in messages if path in message]


@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.pgm", "wide.tif", "big.tif"])
def test_low_bits_of_sixteen_are_stretched_and_said(save, caplog, bits, name):
    """Depths between 8, 10, 12, 14 and 16 count as the next."""
    values = np.linspace(0, (1 << bits) - 1, 600).round().astype(np.uint16).reshape(20, 30)
    if name == "big.tif":
        picture = Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes())
    else:
        picture = Image.fromarray(values.astype(np.int32) if name == "wide.tif" else values)
    path = save(picture, name)
    got = read(path)
    shift = (bits + bits % 2) - 8
    np.testing.assert_array_equal(got, gray3((values >> shift).astype(np.uint8)))
    assert got.max() >= 127
    assert np.array_equal(read(path), got)  # once a file
    assert len(said(caplog, path)) == (bits < 15)
    if bits < 15:
        assert f"read as {shift + 8} bits" in said(caplog, path)[0]


def test_the_case_of_twelve_bits(caplog):
    """The shared case: values up to 4016; it was nearly black."""
    path = str(Path(__file__).parent / "grey_12_bits_in_16.png")
    values = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read(path), gray3((values >> 4).astype(np.uint8)))
    assert read(path).max() == 251 and len(said(caplog, path)) == 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *itertools.product(["image.png", "image.tif", "image.jp2"], [3, 4]),
        ("image.ppm", 3),
    ],
)
def test_colours_of_low_bits(tmp_path, caplog, name, bits, channels):
    """Pillow keeps the upper 8 bits of 16; of 14 that is a quarter of the range, of 12 nothing."""
    ramp = np.linspace(0, (1 << bits) - 1, 64 * 96).round().astype(np.uint16).reshape(64, 96)
    bgr = np.stack([ramp, ramp[::-1], ramp[:, ::-1], np.full_like(ramp, 65535)], axis=2)
    path = str(tmp_path / name)
    assert cv2.imwrite(path, np.ascontiguousarray(bgr[:, :, :channels]))
    got = read(path).astype(int)
    want = bgr[:, :, 2::-1] >> (bits - 8)
    # Pillow rounds PPM; JPEG 2000 loses a little, more where few bits are used.
    tolerance = {"image.ppm": 1, "image.jp2": 30 if bits < 12 else 8}.get(name, 0)
    difference = np.abs(got - want)
    assert (difference.max() if name != "image.jp2" else difference.mean()) <= tolerance
    assert len(said(caplog, path)) == (bits < 16)


def test_gray_with_alpha_of_low_bits(tmp_path):
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    rows = np.stack([values, np.full_like(values, 65535)], axis=2).astype(">u2")
    path = tmp_path / "la.png"
    path.write_bytes(png(30, 20, 16, 4, rows))
    np.testing.assert_array_equal(read(str(path)), gray3((values >> 2).astype(np.uint8)))


def test_low_bits_are_turned_too(tmp_path, save):
    """OpenCV, which reads them, ignores what EXIF data say."""
    colors = np.linspace(0, 4095, 20 * 30 * 3).astype(np.uint16).reshape(20, 30, 3)
    plain = str(tmp_path / "plain.png")
    cv2.imwrite(plain, colors)
    exif = Image.Exif()
    exif[274] = 6
    data = Path(plain).read_bytes()
    block = exif.tobytes()[6:]
    chunk = b"eXIf" + block
    chunk = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    turned = tmp_path / "turned.png"
    turned.write_bytes(data[:33] + chunk + data[33:])
    upright = read(plain)
    np.testing.assert_array_equal(read(str(turned)), np.rot90(upright, -1))
    np.testing.assert_array_equal(read(str(turned), exif_orientation=False), upright)


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536], [0, 2**31 - 1]])
def test_integers_without_a_range_are_refused(save, values):
    path = save(Image.fromarray(np.array([values], dtype=np.int32)), "image.tif")
    with pytest.raises(ValueError, match="whose range is unknown; convert") as error:
        read(path)
    one_line(error, path)


def test_a_dark_image_of_eight_bits_stays_dark(save, caplog):
    dark = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for name in ("image.png", "image.tif", "image.ppm"):
        path = save(Image.fromarray(dark), name)
        np.testing.assert_array_equal(read(path), dark)
        assert not said(caplog, path)
    black = save(Image.fromarray(np.zeros((4, 5), np.uint16)))
    assert not read(black).any() and not said(caplog, black)


def test_low_bits_that_are_lost_are_refused(tmp_path):
    """A PIL image of colours has no file to read again; OpenCV reads neither SGI nor CMYK."""
    colors = np.full((20, 30, 3), 4000, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), colors)
    with Image.open(tmp_path / "deep.png") as image:
        with pytest.raises(ValueError, match="only low ones are used.*give the path"):
            to_pixels(image, "a PIL image")
    header = struct.pack(">HBBHHHHII", 474, 0, 2, 3, 30, 20, 3, 0, 4095) + bytes(492)
    path = tmp_path / "deep.sgi"
    path.write_bytes(header + colors.astype(">u2").transpose(2, 0, 1).tobytes())
    with pytest.raises(ValueError, match="only low ones are used") as error:
        read(str(path))
    one_line(error, str(path))


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
    for name in ("image.png", "image.jpg", "image.tif"):
        path = save(Image.fromarray(pixels), name, exif=exif)
        if name != "image.jpg":
            np.testing.assert_array_equal(read(path), turned)
            np.testing.assert_array_equal(read(path, exif_orientation=False), pixels)
        assert read(path).shape == turned.shape
        assert read(path, exif_orientation=False).shape == pixels.shape


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


def png(width: int, height: int, depth: int, kind: int, rows: np.ndarray | None = None) -> bytes:
    """A PNG of any bit depth and colour type; without rows, of no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    data = b"" if rows is None else zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_decompression_bomb(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60000, 60000, 8, 2))
    with pytest.raises(Image.DecompressionBombError) as error:
        read_image(path)
    one_line(error, str(path))


@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_named(tmp_path, monkeypatch, name, brand):
    """By its content: telephones' files are often renamed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / name
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(60))
    with pytest.raises(
        ValueError, match="HEIC images need .*pip install 'freecp_d2.heif.'"
    ) as error:
        read_image(path)
    one_line(error, str(path))


def test_heic_is_read_by_its_package(monkeypatch):
    called = []
    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = lambda: called.append(True)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    images.formats.cache_clear()
    try:
        assert "PNG" in images.formats() and images.formats() and called == [True]
    finally:
        images.formats.cache_clear()


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        b"\0\0\1\xb3" + bytes(60),
        b"\x89HDF\r\n\x1a\n" + bytes(60),
    ],
    ids=["EPS", "MPEG", "HDF5"],
)
def test_what_pillow_does_not_decode_itself_is_no_image(tmp_path, content):
    """It would hand EPS to Ghostscript, which runs what is in it; the others it only knows."""
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not an image that Pillow knows") as error:
        read_image(path)
    one_line(error, str(path))
    assert not {".eps", ".ps", ".mpg", ".h5", ".pdf"} & images.image_suffixes()
    assert {".jpg", ".jpeg", ".png", ".tif", ".webp", ".bmp", ".mpo"} <= images.image_suffixes()


@pytest.mark.parametrize("raised", [MemoryError(), OSError("out of memory error when reading")])
def test_memory_that_runs_out_is_no_broken_file(pixels, save, monkeypatch, raised):
    def fail(*_: object) -> None:
        raise raised

    path = save(Image.fromarray(pixels))
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(images, "to_pixels", fail)
    with pytest.raises(MemoryError, match="image.png"):
        read_image(path)


LABELS = np.array([[0, 1, 2, 3], [20, 150, 254, 255]])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("labels.png", np.uint8),
        ("labels.png", np.uint16),
        ("labels.tif", np.uint8),
        ("labels.tif", np.uint16),
        ("labels.tif", np.int32),
        ("labels.tif", np.float32),
        ("labels.bmp", np.uint8),
        ("labels.pgm", np.uint8),
        ("labels.pgm", np.uint16),
        ("labels.tga", np.uint8),
    ],
)
def test_label_maps_are_exact(save, name, dtype):
    labels = load_label_map(save(Image.fromarray(LABELS.astype(dtype)), name))
    assert labels.dtype == int and labels.flags.writeable
    np.testing.assert_array_equal(labels, LABELS)


def test_label_maps_of_large_and_negative_ids(save):
    large = np.array([[-1, -32768, 0, 65535, 2**31 - 1]], dtype=np.int32)
    np.testing.assert_array_equal(load_label_map(save(Image.fromarray(large), "l.tif")), large)
    deep = np.array([[0, 300, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(load_label_map(save(Image.fromarray(deep))), deep)
    with pytest.raises(ValueError, match="value 300 is no class id"):
        load_label_map(save(Image.fromarray(deep)), np.uint8)


def test_label_maps_of_palettes_are_their_indices(save):
    image = Image.fromarray(LABELS.astype(np.uint8), mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    for options in ({}, {"transparency": 3}):
        np.testing.assert_array_equal(load_label_map(save(image, **options)), LABELS)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_label_maps_of_few_bits(tmp_path, depth):
    """Pillow multiplies grey of 2 and 4 bits so that it fills 8."""
    ids = np.arange(16).reshape(2, 8) % (1 << depth)
    bits = np.unpackbits(ids.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
    path = tmp_path / "labels.png"
    path.write_bytes(png(8, 2, depth, 0, np.packbits(bits.reshape(2, -1), axis=1)))
    np.testing.assert_array_equal(load_label_map(path), ids)


@pytest.mark.parametrize("name", ["labels.png", "labels.jpg"])
@pytest.mark.parametrize("kind", ["jpeg", "webp", "jpeg2000", "avif", "gif", "tiff"])
def test_label_maps_of_lossy_formats_are_refused(save, tmp_path, name, kind):
    """By their content, whatever they are called; nobody sees from outside what was lost."""
    content = io.BytesIO()
    options = {"compression": "jpeg"} if kind == "tiff" else {}
    Image.fromarray(np.full((20, 30), 3, np.uint8)).save(content, kind, **options)
    (tmp_path / name).write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="fetch the label map as a PNG") as error:
        load_label_map(tmp_path / name)
    assert {"tiff": "JPEG"}.get(kind, kind.upper()) in one_line(error, str(tmp_path / name))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK"])
def test_label_maps_of_several_channels_are_refused(pixels, save, mode):
    path = save(Image.fromarray(pixels).convert(mode), "l.tif" if mode == "CMYK" else "l.png")
    with pytest.raises(ValueError, match="one channel of class ids") as error:
        load_label_map(path)
    one_line(error, path)


@pytest.mark.parametrize("value", [0.7, -0.5, 2.999, float("nan"), float("inf")])
def test_label_maps_of_fractions_are_refused(save, value):
    path = save(Image.fromarray(np.array([[1.0, value]], dtype=np.float32)), "labels.tif")
    with pytest.raises(ValueError, match="is no class id; a label map holds whole") as error:
        load_label_map(path)
    one_line(error, path)


def test_label_maps_that_pillow_scales_or_inverts_are_refused(tmp_path):
    path = tmp_path / "labels.pgm"
    path.write_bytes(b"P5 2 1 20 \x01\x14")
    with pytest.raises(ValueError, match="a maximum of 20"):
        load_label_map(path)
    entries = [(256, 2), (257, 1), (258, 8), (259, 1), (262, 0), (273, 8), (277, 1), (278, 1)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*entries, (279, 2)])
    header = b"II*\0" + struct.pack("<I", 10) + b"\x01\x14" + struct.pack("<H", 9)
    path.write_bytes(header + table + bytes(4))
    with Image.open(path) as image:
        assert np.array(image).tolist() == [[254, 235]]
    with pytest.raises(ValueError, match="WhiteIsZero"):
        load_label_map(path)


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


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("label_size", [(20, 30), (30, 20), (7, 7)])
def test_a_turned_image_with_label_maps_that_are_not(
    pixels, save, caplog, name, orientation, label_size
):
    exif = Image.Exif()
    exif[274] = orientation
    path = save(Image.fromarray(pixels), name, exif=exif)
    labels = save(Image.fromarray(np.zeros(label_size, np.uint8)), "labels.png")
    record = {"file_name": path, "sem_seg_file_name": labels}
    turned = configured(MIN_SIZE_TEST=0)(record)
    assert (turned["height"], turned["width"]) == ((30, 20) if orientation == 6 else (20, 30))
    expected = orientation != 1 and label_size == (20, 30)
    assert len(said(caplog, path)) == expected
    if expected:
        assert "30 x 20" in said(caplog, path)[0]
        assert "INPUT.EXIF_ORIENTATION False" in said(caplog, path)[0]
    caplog.clear()
    mapped = configured(MIN_SIZE_TEST=0, EXIF_ORIENTATION=False)(record)
    assert (mapped["height"], mapped["width"]) == (20, 30) and not said(caplog, path)
    np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0), pixels)


def test_a_turned_image_without_a_label_map_is_mapped(pixels, save, caplog):
    exif = Image.Exif()
    exif[274] = 6
    path = save(Image.fromarray(pixels), exif=exif)
    assert configured()({"file_name": path})["height"] == 30 and not said(caplog, path)


@pytest.mark.parametrize(
    ("ids", "mode", "dtype"),
    [([0, 7, 255], np.uint8, torch.uint8), ([0, 7, 255], np.uint16, torch.uint8)]
    + [([0, 7, 846], np.uint16, torch.int64), ([-1, 3, 4], np.int32, torch.int64)],
)
def test_a_ground_truth_is_as_small_as_its_ids(save, ids, mode, dtype):
    path = save(Image.fromarray(np.array([ids], dtype=mode)), "truth.tiff")
    labels = ground_truth(path)["sem_seg"]
    assert labels.dtype == dtype and labels.tolist() == [ids]


def test_a_broken_ground_truth_is_a_sentence(save):
    path = save(Image.new("RGB", (2, 2)), "truth.png")
    fault = ground_truth(path)
    assert fault.keys() == {"sem_seg_fault"}
    assert path in fault["sem_seg_fault"] and "one channel" in fault["sem_seg_fault"]
