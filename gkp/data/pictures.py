"""Pictures of every usual file format as 8-bit RGB, or a sentence why one cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
# Of images in formats that are not read.
UNREAD = frozenset(
    {".gif", ".jfif", ".jpe", ".jp2", ".avif", ".heic", ".heif", ".tga", ".psd", ".svg", ".dng"}
)
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # a TIFF's tag


def refuse_truncation() -> None:
    """ValueError when some code has told Pillow to fill what is missing of damaged images with grey."""
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so damaged images look whole: unset it")


def rgb(image: Image) -> Image:
    """The first frame as 8-bit RGB, turned as its EXIF orientation says.

    16-bit greys become the nearest of 256 levels, where Pillow's own conversion clips. ValueError when no
    8-bit copy is the obvious one: levels of 32 bits or in floating point, Lab, transparent pixels. What is
    damaged raises Pillow's own errors.
    """
    from PIL import ImageOps

    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    kind = image.format
    image = ImageOps.exif_transpose(image)
    # Older Pillow opens 16-bit PNGs with 32 bits, and every Pillow does so with 16-bit PGMs.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return _from_16_bits(image, inverted=white_is_zero)
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"its levels are of Pillow's mode {image.mode}: save it as 8-bit RGB or grey")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise ValueError("it has transparent pixels: save it on the background that it should have")
    return image.convert("RGB")


def _from_16_bits(image: Image, *, inverted: bool) -> Image:
    from PIL import Image as images

    if "transparency" in image.info:
        raise ValueError("one of its 16-bit levels is transparent: save it as 8-bit RGB or grey")
    levels = (np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8)  # 65535 = 255 * 257
    return images.fromarray(255 - levels if inverted else levels).convert("RGB")
