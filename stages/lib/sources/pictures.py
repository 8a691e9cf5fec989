"""Decode PNG, JPEG, BMP, WebP, TIFF and GIF files into uint8 arrays, with Pillow."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")  # some others run external programs
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Raised by Pillow and `decode` on files that are damaged, too large or not supported.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    SyntaxError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class Header:
    """Size in pixels as displayed, format and Pillow mode, and whether the mode is grayscale."""

    height: int
    width: int
    kind: str
    gray: bool


@contextmanager
def strict() -> Iterator[None]:
    """Make Pillow reject decompression bombs and ignore corrupt metadata."""
    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def open_image(file: str | Path | IO[bytes]) -> Iterator[tuple[Header, Image.Image]]:
    """Open a file and read its header; `decode` decodes the pixels.

    Raises:
        UNREADABLE: The file is not an image in one of `FORMATS`, or has several frames.
    """
    # Given a path, Pillow maps TIFF files into memory and scrambles the rotated ones.
    # Path.open is slower than open.
    opened = open(file, "rb") if isinstance(file, str | Path) else nullcontext(file)  # noqa: PTH123, SIM115
    with opened as source, Image.open(source, formats=FORMATS) as image:
        # Counting the frames of a crafted file would take hours.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError("expected one frame, found an animation")
        width, height = image.size
        # Pillow applies the orientation of TIFFs itself, and would decode a PNG to find EXIF data.
        has_exif = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if has_exif and image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        kind, gray = f"{image.format} {image.mode}", image.mode in GRAY_MODES
        yield Header(height, width, kind, gray), image


def decode(
    image: Image.Image, *, gray: bool, background: tuple[int, ...] | None
) -> np.ndarray | None:
    """Decode an image as viewers display it, with EXIF orientation and palette applied.

    Args:
        image: From `open_image`.
        gray: Whether to convert colors to luma (ITU-R BT.601).
        background: Gray level or RGB on which transparent pixels are composited.

    Returns:
        Gray levels, shape (height, width), or RGB, shape (height, width, 3), uint8; 16-bit levels
        are divided by 257. None if pixels are transparent and no background is given.

    Raises:
        UNREADABLE: The pixels are damaged, truncated, or floating-point.
    """
    image.load()
    if image.info:  # metadata; most PNG have none
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int32)
        if levels.min() < 0 or levels.max() > 65_535:
            raise ValueError("expected levels of at most 16 bits, found more")
        levels = ((levels + 128) // 257).astype(np.uint8)
        return levels if gray else np.repeat(levels[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits, found floating-point levels")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            if background is None:
                return None
            canvas = Image.new("RGBA", image.size, (*np.broadcast_to(background, 3).tolist(), 255))
            canvas.alpha_composite(image)
            image = canvas
    mode = "L" if gray else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def border(images: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of images (n, height, width[, 3]), shape (n, pixels[, 3])."""
    top, bottom, left, right = images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]
    return np.concatenate([top, bottom, left, right], axis=1)


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image to fit a frame, with antialiasing, preserving the aspect ratio.

    Args:
        image: Shape (h, w) or (h, w, 3), uint8.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        Shape (height, width) or (height, width, 3), uint8. The image is centered; the median of
        its outermost pixels fills the rest of the frame. The triangle filter never overshoots, so
        no gray level lies outside the range of the image.
    """
    if image.shape[:2] == (height, width):
        return image
    scale = min(height / image.shape[0], width / image.shape[1])
    rows, columns = (max(1, round(side * scale)) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    frame = np.empty((height, width, *image.shape[2:]), np.uint8)
    frame[:] = np.median(border(image[None])[0], axis=0)
    top, left = (height - rows) // 2, (width - columns) // 2
    frame[top : top + rows, left : left + columns] = resized
    return frame
