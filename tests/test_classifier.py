"""Preparation of any image file for a model, and the warning about unusual images."""

import io
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from stages import fetch
from stages.lib.stage import StageError
from tests.helpers import (
    HEIGHT,
    WIDTH,
    described,
    small_mlp,
    tiny_arrays,
    tiny_entry,
    write_entry,
)
from tools.lib.classifier import Classifier, read_classifier


def digit(side: int = 28) -> np.ndarray:
    """A 7, light on dark, as published: 20 of 28 pixels high, centered by mass."""
    grid = np.zeros((140, 140))
    grid[20:38, 38:108] = 1
    for row in range(38, 120):
        left = 90 - (row - 38) // 2
        grid[row, left : left + 18] = 1
    rows, columns = np.indices(grid.shape)
    shift = [round(70 - (grid * axis).sum() / grid.sum()) for axis in (rows, columns)]
    image = Image.fromarray((255 * np.roll(grid, shift, (0, 1))).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def saved(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    file.seek(0)
    return file


def paper(seed: int = 0, noise: float = 4) -> np.ndarray:
    """A photo of paper, 360 x 480, darker on one side."""
    rng = np.random.default_rng(seed)
    light = np.linspace(230, 120, 480)[None].repeat(360, axis=0)
    return light + rng.normal(0, noise, light.shape)


def written(canvas: np.ndarray, top: int, left: int, side: int = 140) -> np.ndarray:
    """A photo with a digit on it, in dark ink."""
    photo = canvas.copy()
    photo[top : top + side, left : left + side] *= 1 - digit(side) / 255 * 0.75
    return photo.clip(0, 255).astype(np.uint8)


def make(path: Path, *image: int, centered: bool = False) -> Classifier:
    path.write_bytes(small_mlp(*described(*image)))
    return replace(read_classifier(path), centered=centered)


@pytest.fixture
def plain(tmp_path: Path) -> Classifier:
    """A model of images that are not centered by mass."""
    return make(tmp_path / "model.onnx", 28, 28)


@pytest.fixture
def centered(tmp_path: Path) -> Classifier:
    """A model of images as those of MNIST."""
    return make(tmp_path / "model.onnx", 28, 28, centered=True)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean difference of two images, relative to the second."""
    return float(np.abs(found.astype(float) - expected).sum() / expected.sum())


def test_image_like_published_ones_is_unchanged(centered: Classifier) -> None:
    found = centered.prepare(saved(digit()))
    assert found.steps == ()
    np.testing.assert_array_equal(found.image, digit())


@pytest.mark.parametrize(
    "changed", [np.roll(digit(), 4, axis=1), 255 - digit(), np.maximum(digit(), 30)]
)
def test_same_size_image_is_prepared_if_unlike_data(
    centered: Classifier, changed: np.ndarray
) -> None:
    """Translated, inverted and brightened digits of 28 x 28 pixels are prepared."""
    found = centered.prepare(saved(changed))
    assert "centered by mass" in found.steps
    assert difference(found.image, digit()) < 0.35


@pytest.mark.parametrize("size", [(60, 60), (280, 280), (200, 500), (1500, 900)])
def test_strokes_fit_20_pixels_centered_by_mass(
    centered: Classifier, size: tuple[int, int]
) -> None:
    canvas = np.full(size, 20, np.uint8)
    drawn = digit(56)
    canvas[: drawn.shape[0], -drawn.shape[1] :] = np.maximum(drawn, 20)
    found = centered.prepare(saved(canvas)).image
    rows, columns = (np.flatnonzero(found.sum(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert found.max() == 255
    for axis in (0, 1):
        mass = (found.sum(axis=1 - axis) @ np.arange(28)) / found.sum()
        assert mass == pytest.approx(14, abs=0.6)


def test_digit_is_found_on_unevenly_lit_paper(centered: Classifier) -> None:
    found = centered.prepare(saved(written(paper(), 80, 250), "JPEG"))
    assert found.steps[0] == "inverted"
    assert difference(found.image, digit()) < 0.35


def test_table_next_to_the_paper_is_not_ink(centered: Classifier) -> None:
    photo = written(paper(), 80, 200)
    photo[:, :60] = 30
    photo[330:] = 30
    assert difference(centered.prepare(saved(photo)).image, digit()) < 0.35


def test_shadow_and_grid_lines_are_not_ink(centered: Classifier) -> None:
    photo = written(paper(), 80, 200).astype(float)
    photo[::24] *= 0.85
    photo[:, ::24] *= 0.85
    photo[:, 260:] *= 0.6
    found = centered.prepare(saved(photo.astype(np.uint8)))
    assert difference(found.image, digit()) < 0.4


def test_specks_are_dropped_and_broken_strokes_kept(centered: Classifier) -> None:
    photo = written(paper(), 80, 200)
    photo[20:24, 20:24] = photo[300:303, 440:443] = 20
    photo[150:154] = paper()[150:154].astype(np.uint8)  # cuts the stroke
    assert difference(centered.prepare(saved(photo)).image, digit()) < 0.35


def test_stroke_width_is_normalized(centered: Classifier) -> None:
    for width, step in ((4, "strokes widened"), (70, "strokes thinned")):
        canvas = np.zeros((300, 300), np.uint8)
        canvas[40:260, 150 - width // 2 : 150 + width // 2] = 255
        found = centered.prepare(saved(canvas))
        assert step in found.steps
        assert 1.5 <= (found.image.sum(axis=1) / 255).max() <= 6.5


def test_hole_in_a_thick_ring_is_not_a_stroke(centered: Classifier) -> None:
    rows, columns = np.indices((280, 280)) - 140
    radius = np.hypot(rows / 1.3, columns / 0.8)
    ring = np.where((radius > 30) & (radius < 85), 30, 240).astype(np.uint8)
    found = centered.prepare(saved(ring))
    assert found.steps[0] == "inverted"
    assert found.image[14, 14] < 128 < found.image[14].max()


@pytest.mark.parametrize("pen", [20, 235])
def test_transparent_pixels_contrast_with_the_pen(centered: Classifier, pen: int) -> None:
    levels = np.full((280, 280), pen, np.uint8)
    drawing = np.dstack([levels, levels, levels, digit(280)])
    found = centered.prepare(saved(drawing))
    assert found.steps[0] == "transparent pixels filled"
    assert ("inverted" in found.steps) == (pen == 20)
    assert difference(found.image, digit()) < 0.35


def test_exif_orientation_is_applied(centered: Classifier) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rotated = np.rot90(written(paper(), 80, 200))
    found = centered.prepare(saved(rotated, "JPEG", exif=exif.tobytes()))
    assert difference(found.image, digit()) < 0.35


@pytest.mark.parametrize(
    "blank", [np.full((300, 400), 255), np.zeros((28, 28)), np.zeros((1, 1)), paper(noise=2)]
)
def test_blank_image_has_no_ink(centered: Classifier, blank: np.ndarray) -> None:
    found = centered.prepare(saved(blank.clip(0, 255).astype(np.uint8)))
    assert found.steps == ("no strokes found",)
    assert not found.image.any()


def test_random_images_cause_no_warnings(centered: Classifier) -> None:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(action="error"):
        for number in range(120):
            size = rng.integers(1, (2, 8, 40, 90)[number % 4], 2)
            image = rng.integers(0, 256, size) * (rng.random(size) < rng.random())
            found = centered.prepare(saved(image.astype(np.uint8))).image
            assert found.shape == (28, 28)
            assert found.dtype == np.uint8


def test_resized_images_keep_their_levels(plain: Classifier) -> None:
    image = np.random.default_rng(0).integers(0, 100, (56, 40), np.uint8)
    found = plain.prepare(saved(image))
    assert found.steps == ("fitted into 28 x 28",)
    assert found.image.max() < 100


def test_only_opposite_polarity_is_inverted(
    plain: Classifier,
) -> None:
    """An object that reaches the border, such as a pullover, is not inverted."""
    found = plain.prepare(saved(255 - digit()))
    assert found.steps == ("inverted",)
    np.testing.assert_array_equal(found.image, digit())
    wide = np.zeros((28, 28), np.uint8)  # such as a pullover
    wide[:, 4:24] = 200
    assert plain.prepare(saved(wide)).steps == ()
    bright = replace(plain, model=replace(plain.model, background=255))
    assert bright.prepare(saved(255 - digit())).steps == ()
    assert bright.prepare(saved(digit())).steps == ("inverted",)


def test_color_images_are_never_inverted(tmp_path: Path) -> None:
    color = make(tmp_path / "model.onnx", 8, 8, 3)
    white = np.full((8, 8, 3), 250, np.uint8)
    np.testing.assert_array_equal(color.prepare(saved(white)).image, white)
    assert color.prepare(saved(np.zeros((16, 16), np.uint8))).image.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PNG"),
        (b"hello", "not a PNG"),
        (saved(digit(280)).getvalue()[:300], "truncated|broken|Truncated"),
        (saved(Image.new("1", (20_000, 20_000))).getvalue(), "decompression bomb"),
    ],
)
def test_invalid_file_is_rejected_in_one_line(
    centered: Classifier, content: bytes, message: str
) -> None:
    with pytest.raises(StageError, match=message) as raised:
        centered.prepare(io.BytesIO(content))
    assert "\n" not in str(raised.value)
    assert "object at" not in str(raised.value)


def test_dataset_entry_controls_centering(project: Path) -> None:
    (project / "model.onnx").write_bytes(small_mlp(*described()))
    assert not read_classifier(Path("model.onnx")).centered
    write_entry(project, "tiny", tiny_entry() | {"centering": "mass"})
    assert read_classifier(Path("model.onnx")).centered
    (project / "datasets/tiny.yaml").rename(project / "datasets/other.yaml")
    assert not read_classifier(Path("model.onnx")).centered
    shutil.rmtree(project / "datasets")
    assert not read_classifier(Path("model.onnx")).centered


def test_temperature_applies_only_to_its_own_model(project: Path) -> None:
    for folder in ("data", "reports"):
        Path(folder).mkdir(exist_ok=True)
    for name in ("data/model.onnx", "other.onnx"):
        Path(name).write_bytes(small_mlp(*described()))
    Path("reports/scores.json").write_text('{"temperature_scaling": {"temperature": 2.0}}')
    images = tiny_arrays()["test_images"]
    scaled = read_classifier().predict(images)
    plain = read_classifier(Path("other.onnx")).predict(images)
    roots = plain**0.5
    np.testing.assert_allclose(scaled, roots / roots.sum(axis=1, keepdims=True), rtol=1e-5)
    assert (scaled.max(axis=1) < plain.max(axis=1)).all()


def test_unusual_images_differ_from_training_images(project: Path) -> None:
    Path("model.onnx").write_bytes(small_mlp(*described()))
    assert read_classifier(Path("model.onnx")).unusual(np.zeros((1, HEIGHT, WIDTH))) is None
    fetch.main()
    classifier = read_classifier(Path("model.onnx"))
    own = classifier.unusual(tiny_arrays()["test_images"])
    noise = np.random.default_rng(0).integers(0, 256, (30, HEIGHT, WIDTH)).astype(np.uint8)
    other = classifier.unusual(noise)
    blank = classifier.unusual(np.zeros((1, HEIGHT, WIDTH), np.uint8))
    assert own is not None
    assert other is not None
    assert own.mean() < 0.3
    assert other.mean() > 0.8
    assert blank is not None
    assert blank.all()


def test_no_warning_with_data_of_another_dataset(project: Path) -> None:
    fetch.main()
    dataset, scaling = described()
    Path("model.onnx").write_bytes(small_mlp(dataset | {"name": "other"}, scaling))
    images = tiny_arrays()["test_images"]
    assert read_classifier(Path("model.onnx")).unusual(images) is None
