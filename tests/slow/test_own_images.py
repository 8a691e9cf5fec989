"""Accuracy on imported images, which must not depend on color, polarity or range."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from stages import evaluate, extract_errors, fetch, normalize, plot, predict, train
from stages.lib.files import read_json
from tools import dataset
from tools.lib.imports import Options

pytestmark = pytest.mark.slow

Edit = Callable[[str, object], None]
DIGITS, LABELS = load_digits(return_X_y=True)
GRAY = (DIGITS.reshape(-1, 8, 8) * 15).astype(np.uint8)  # levels 0 to 240
TEST = np.zeros(len(LABELS), bool)  # every fifth image of a class, whatever its levels
for label in range(10):
    TEST[np.flatnonzero(label == LABELS)[4::5]] = True


@pytest.fixture(autouse=True)
def params(project: Path, edit: Edit) -> None:
    """Small networks that learn the digits in seconds."""
    edit("dataset", "own")
    edit("normalize.validation", 0.1)
    edit("train.epochs", 15)
    edit("train.batch_size", 25)
    edit("model.mlp.hidden", [500])
    edit("model.cnn.filters", [16, 32])
    edit("model.cnn.shift", 0.5)


def import_images(images: np.ndarray, labels: np.ndarray = LABELS, *, gray: bool = False) -> None:
    """Import images with a published test split, and run the stages before train."""
    arrays: Any = {"x_train": images[~TEST], "x_test": images[TEST]}
    np.savez("images.npz", **arrays, y_train=labels[~TEST], y_test=labels[TEST])
    dataset.make(Path("images.npz"), Options("own", gray=gray), {})
    fetch.main()
    normalize.main()


def accuracy() -> float:
    """Train and return the accuracy on test."""
    for stage in (train, predict, evaluate):
        stage.main()
    found: float = read_json(Path("reports/metrics.json"))["accuracy"]
    return found


def test_every_kind_learns_the_digits(edit: Edit) -> None:
    import_images(GRAY)
    for kind, least in (("mlp", 0.95), ("cnn", 0.95), ("pca_knn", 0.95), ("linear", 0.92)):
        edit("model.kind", kind)
        assert accuracy() > least, kind


@pytest.mark.parametrize("kind", ["mlp", "cnn", "pca_knn"])
def test_color_is_learned_and_lost_in_gray(edit: Edit, kind: str) -> None:
    """The class is the color of the strokes, red or green of equal brightness."""
    edit("model.kind", kind)
    labels = np.random.default_rng(0).integers(0, 2, len(GRAY))
    colors = np.array([[255, 0, 0], [0, 130, 0]])[labels]  # equal luma
    images = (GRAY[..., None] / 240 * colors[:, None, None]).astype(np.uint8)
    import_images(images, labels)
    assert accuracy() > 0.99
    plot.main()  # figures of color images
    extract_errors.main()
    import_images(images, labels, gray=True)
    assert 0.4 < accuracy() < 0.6


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_dark_on_light_is_as_accurate(edit: Edit, kind: str) -> None:
    """Mean of five seeds; the background, not 0, fills the edges in augmentation."""
    edit("model.kind", kind)
    means = []
    for images in (GRAY, 255 - GRAY):
        import_images(images)
        found = []
        for seed in range(5):
            edit("train.seed", seed)
            found.append(accuracy())
        means.append(np.mean(found))
    assert means[1] == pytest.approx(means[0], abs=0.01)


@pytest.mark.parametrize("levels", [1, 16])
def test_few_levels_are_stretched(levels: int) -> None:
    """Levels 0 to 1 or 0 to 16 become the same intensities as 0 to 255."""
    rounded = np.rint(GRAY / 240 * levels).astype(np.uint8)
    found = []
    for images in (rounded, (rounded.astype(int) * 255 // levels).astype(np.uint8)):
        import_images(images)
        found.append(accuracy())
    assert found[0] == pytest.approx(found[1], abs=0.01)
