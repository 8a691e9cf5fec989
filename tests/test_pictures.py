"""Decoding and resizing of image files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.lib.sources.pictures import UNREADABLE, decode, fit, open_image, strict

GRAY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
COLOR = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:  # noqa: ANN401
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def decoded(
    file: Path | io.BytesIO,
    gray: bool = False,
    background: Any = None,  # noqa: ANN401
) -> np.ndarray:
    with strict(), open_image(file) as (_, opened):
        image = decode(opened, gray=gray, background=background)
    assert image is not None
    assert image.dtype == np.uint8
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray_levels_survive_every_lossless_format(kind: str) -> None:
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(GRAY), kind), gray=True), GRAY)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colors_survive_every_lossless_format(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(COLOR), kind, **options)), COLOR)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_give_one_array(orientation: int, kind: str, tmp_path: Path) -> None:
    """Blocks of 16 x 16 survive JPEG, so that all eight files decode alike."""
    shown = np.kron(np.array([[0, 90, 180], [250, 40, 120]], np.uint8), np.ones((16, 16), np.uint8))
    transpose = Image.Transpose
    undo: dict[int, Any] = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_90,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_270,
    }
    image = Image.fromarray(shown)
    stored = image.transpose(undo[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    file = saved(stored, kind, exif=exif, **options)
    with open_image(file) as (header, _):
        pass
    assert (header.height, header.width) == shown.shape
    np.testing.assert_allclose(decoded(file, gray=True), shown, atol=3)
    path = tmp_path / "image"  # Pillow would map an uncompressed TIFF of a path into memory
    path.write_bytes(file.getvalue())
    np.testing.assert_allclose(decoded(path, gray=True), shown, atol=3)


def test_sixteen_bits_are_divided_and_not_clipped() -> None:
    levels = GRAY.astype(np.uint16) * 257
    file = saved(Image.fromarray(levels))
    with open_image(file) as (header, _):
        assert header.gray
    np.testing.assert_array_equal(decoded(file, gray=True), GRAY)
    np.testing.assert_array_equal(decoded(file), np.dstack([GRAY] * 3))


def test_one_bit_becomes_black_and_white() -> None:
    file = saved(Image.fromarray(GRAY > 100))
    np.testing.assert_array_equal(decoded(file, gray=True), np.where(GRAY > 100, 255, 0))


def test_palette_colors_are_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.putpixel((1, 0), 1)
    assert decoded(saved(image)).tolist() == [[[0, 0, 0], [200, 10, 30]]]


def test_transparent_palette_color_is_composited() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.putpixel((1, 0), 1)
    file = saved(image, transparency=0)
    assert decoded(file, background=(9, 8, 7)).tolist() == [[[9, 8, 7], [200, 10, 30]]]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decoded(saved(image, "JPEG")).astype(int) - [255, 0, 0]).max() <= 3


def test_transparency_requires_a_background() -> None:
    pixels = np.dstack([COLOR, np.where(GRAY > 100, 255, 0).astype(np.uint8)])
    file = saved(Image.fromarray(pixels))
    with open_image(file) as (_, image):
        assert decode(image, gray=False, background=None) is None
    expected = np.where((GRAY > 100)[..., None], COLOR, [1, 2, 3])
    np.testing.assert_array_equal(decoded(file, background=(1, 2, 3)), expected)


def test_full_opacity_needs_no_background() -> None:
    pixels = np.dstack([COLOR, np.full((4, 6), 255, np.uint8)])
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(pixels))), COLOR)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "cannot identify", id="empty"),
        pytest.param(b"<html>", "cannot identify", id="web-page"),
        pytest.param(saved(NOISE).getvalue()[:-400], "truncated", id="png-cut"),
        pytest.param(saved(NOISE, "JPEG").getvalue()[:-400], "truncated", id="jpeg-cut"),
        pytest.param(
            saved(Image.new("L", (64, 64)), "BMP").getvalue()[:-60], "truncated", id="bmp-cut"
        ),
        pytest.param(saved(Image.new("L", (64, 64)), "TIFF").getvalue()[:90], ".", id="tiff-cut"),
        pytest.param(saved(Image.new("L", (64, 64)), "WEBP").getvalue()[:40], ".", id="webp-cut"),
        pytest.param(
            saved(
                Image.new("L", (4, 4)),
                "GIF",
                save_all=True,
                append_images=[Image.new("L", (4, 4), 9)],
            ).getvalue(),
            "an animation",
            id="animation",
        ),
        pytest.param(
            saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF").getvalue(),
            "floating-point",
            id="floats",
        ),
        pytest.param(
            saved(Image.fromarray(GRAY.astype(np.int32) * -1), "TIFF").getvalue(),
            "16 bits",
            id="negative",
        ),
    ],
)
def test_invalid_file_is_rejected(content: bytes, reason: str) -> None:
    with pytest.raises(UNREADABLE, match=reason):
        decoded(io.BytesIO(content))


def test_decompression_bomb_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (40, 100):  # Pillow warns about the first and rejects the second
        with pytest.raises(UNREADABLE, match="decompression bomb"):
            decoded(saved(Image.new("L", (side, side))))


def test_fit_keeps_the_aspect_ratio_and_pads() -> None:
    image = np.full((20, 40), 7, np.uint8)
    image[5:15, 10:30] = 200
    frame = fit(image, 10, 10)
    assert frame[:2].tolist() == [[7] * 10] * 2
    assert frame[-2:].tolist() == [[7] * 10] * 2
    assert frame[4, 4:6].tolist() == [200, 200]


@pytest.mark.parametrize("shape", [(4, 6), (9, 3), (1, 50), (50, 1), (6, 6)])
def test_fit_stays_within_the_levels_of_the_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(50, 200, (*shape, 3), dtype=np.uint8)
    frame = fit(image, 8, 8)
    assert frame.shape == (8, 8, 3)
    assert image.min() <= frame.min() <= frame.max() <= image.max()


def test_fit_returns_image_of_right_size_unchanged() -> None:
    assert fit(COLOR, 4, 6) is COLOR
