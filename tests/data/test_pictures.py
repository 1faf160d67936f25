"""gkp.data.pictures: files of every usual kind become their 8-bit RGB picture, or are refused by name."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from gkp import data

RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
GREY = RGB[..., 0]


def png_16(levels: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W) or (H, W, 3) uint16; Pillow writes grey ones only."""
    height, width = levels.shape[:2]
    rows = levels.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if levels.ndim == 3 else 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pgm_16(levels: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % levels.shape[::-1] + levels.astype(">u2").tobytes()


def tiff_16(levels: np.ndarray, photometric: int = 1) -> bytes:
    """A grey little-endian 16-bit TIFF; photometric 0: the highest level is black."""
    height, width = levels.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, levels.size * 2)]
    body = levels.astype("<u2").tobytes()
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(body)
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    """A picture stored turned, with the EXIF orientation that turns it upright again."""
    ways = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    ways |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = Image.fromarray(RGB).transpose(Image.Transpose[ways[orientation]])
    return saved(stored, "PNG", exif=exif)


def palette(**options) -> bytes:
    image = Image.new("P", (8, 8))
    image.putpalette([value for level in range(256) for value in (level, 255 - level, level // 2)])
    image.putdata(GREY.flatten().tolist())
    return saved(image, "PNG", **options)


def with_alpha(lowest: int, mode: str = "RGBA") -> bytes:
    alpha = np.full((8, 8, 1), 255, np.uint8)
    alpha[3, 3] = lowest
    pixels = RGB if mode == "RGBA" else GREY[..., None]
    return saved(Image.fromarray(np.concatenate([pixels, alpha], 2), mode), "PNG")


WIDE = GREY.astype(np.uint16) * 257
THREE = np.stack([GREY] * 3, 2)
PALETTE = np.stack([GREY, 255 - GREY, GREY // 2], 2)
BITS = np.where(THREE > 127, 255, 0)
SAME = {  # bytes of a file, its name, the picture
    "grey of 8 bits": (lambda: saved(Image.fromarray(GREY), "PNG"), "a.png", THREE),
    "grey of 16 bits": (lambda: png_16(WIDE), "a.png", THREE),
    "grey of 16 bits by Pillow": (lambda: saved(Image.fromarray(WIDE), "PNG"), "a.PNG", THREE),
    "grey of 16 bits, TIFF": (lambda: saved(Image.fromarray(WIDE), "TIFF"), "a.tif", THREE),
    "16 bits, TIFF by hand": (lambda: tiff_16(WIDE), "a.tiff", THREE),
    "16 bits, TIFF, white is 0": (lambda: tiff_16(65535 - WIDE, 0), "a.tiff", THREE),
    "grey of 16 bits, PGM": (lambda: pgm_16(WIDE), "a.pgm", THREE),
    "RGB of 16 bits": (lambda: png_16(RGB.astype(np.uint16) * 257), "a.png", RGB),
    "palette": (palette, "a.png", PALETTE),
    "palette with an opaque entry": (lambda: palette(transparency=b"\xff" * 256), "a.png", PALETTE),
    "opaque alpha": (lambda: with_alpha(255), "a.png", RGB),
    "grey with opaque alpha": (lambda: with_alpha(255, "LA"), "a.png", THREE),
    "CMYK": (lambda: saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "a.tiff", RGB),
    "1 bit": (lambda: saved(Image.fromarray(GREY > 127), "PNG"), "a.png", BITS),
    "1 bit, PBM": (lambda: saved(Image.fromarray(GREY > 127), "PPM"), "a.pbm", BITS),
    "WebP": (lambda: saved(Image.fromarray(RGB), "WEBP", lossless=True), "a.webp", RGB),
    "BMP": (lambda: saved(Image.fromarray(RGB), "BMP"), "a.bmp", RGB),
    **{f"EXIF orientation {n}": (functools.partial(turned, n), "a.png", RGB) for n in range(2, 9)},
}


@pytest.mark.parametrize("case", SAME)
def test_every_kind_of_file_gives_its_picture(tmp_path, case):
    content, name, expected = SAME[case]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / name).write_bytes(content())
    found = data.load_folder(tmp_path, 8).images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


def test_an_upright_photograph_is_not_cropped_on_its_side(tmp_path):
    (tmp_path / "only").mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:, :40] = 250  # the upper half once it stands, 40 wide and 80 high
    Image.fromarray(stored).save(tmp_path / "only" / "a.jpg", exif=exif, quality=95)
    found = data.load_folder(str(tmp_path), 40).images[0].float().mean(0)
    assert found[:18].min() > 240
    assert found[22:].max() < 10


REFUSED = {
    "floating point": (lambda: saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "mode F"),
    "32 bits": (lambda: saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "mode I"),
    "Lab": (lambda: saved(Image.new("LAB", (8, 8)), "TIFF"), "mode LAB"),
    "transparent pixel": (lambda: with_alpha(0), "transparent pixels"),
    "grey transparent pixel": (lambda: with_alpha(254, "LA"), "transparent pixels"),
    "transparent palette entry": (lambda: palette(transparency=int(GREY[0, 0])), "transparent pixels"),
    "16 bits with a transparent level": (
        lambda: saved(Image.fromarray(WIDE), "PNG", transparency=5),
        "transparent",
    ),
    "empty file": (lambda: b"", "cannot identify"),
    "text": (lambda: b"no image", "cannot identify"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_without_an_obvious_8_bit_copy_is_refused_by_name(tmp_path, case):
    content, reason = REFUSED[case]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "one.png").write_bytes(content())
    with pytest.raises(ValueError, match=rf"only/one\.png is not a readable image: .*{reason}"):
        data.load_folder(tmp_path, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM"])
@given(share=st.floats(0.3, 0.9))
def test_a_file_that_is_cut_off_is_named(tmp_path_factory, kind, share):
    folder = tmp_path_factory.mktemp("cut") / "only"
    folder.mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    content = saved(Image.fromarray(noise), kind)
    (folder / "one.png").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"only/one\.png"):
        data.load_folder(folder.parent, 8)


def test_pillow_must_not_fill_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "only").mkdir()
    Image.fromarray(RGB).save(tmp_path / "only" / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES"):
        data.load_folder(tmp_path, 8)
