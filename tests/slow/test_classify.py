"""Classification of photos and drawings derived from MNIST's test split."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.baselines import photos
from tests.helpers import Clone

pytestmark = pytest.mark.slow


def test_photos_and_drawings_lose_at_most_three_points(trained: Clone, tmp_path: Path) -> None:
    images, labels = (
        np.load(trained.path / f"data/raw/test_{kind}.npy")[:300] for kind in ("images", "labels")
    )
    found = photos.accuracies(trained.path, tmp_path, images, labels, trained.env)
    print(*(f"{name}: {accuracy:.4f}" for name, accuracy in found.items()), sep="\n")
    assert found["unchanged"] > 0.96
    for name, accuracy in found.items():
        assert accuracy >= found["unchanged"] - 0.03, name


def test_exported_test_split_has_equal_predictions(trained: Clone, tmp_path: Path) -> None:
    for number, image in enumerate(np.load(trained.path / "data/raw/test_images.npy")):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    lines = trained.call("python", "-m", "tools.classify", "--csv", os.fspath(tmp_path))
    rows = [line.split(",") for line in lines.splitlines()[1:]]
    found = np.array([[np.float32(cell) for cell in row[3:]] for row in rows])
    expected = np.load(trained.path / "data/predictions.npz")["test_probabilities"]
    assert [Path(row[0]).name for row in rows] == [f"{number}.png" for number in range(10_000)]
    np.testing.assert_array_equal(found, expected)
    assert [int(row[1]) for row in rows] == expected.argmax(axis=1).tolist()
