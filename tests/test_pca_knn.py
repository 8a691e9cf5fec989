"""PCA and k-nearest neighbors, compared with scikit-learn and by hand."""

import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from stages import fetch, normalize, predict, train
from stages.lib.models import pca_knn
from stages.lib.models.graph import describe
from stages.lib.models.runtime import read_model
from stages.lib.stage import StageError
from tests.helpers import Edit, described


@pytest.fixture
def trained(project: Path, edit: Edit) -> Path:
    """The working directory after training on four components and three neighbors."""
    edit("model.kind", "pca_knn")
    edit("model.pca_knn", {"components": 4, "neighbors": 3})
    fetch.main()
    normalize.main()
    train.main()
    return project


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (
        np.load(f"data/normalized/{name}_{kind}.npy") for kind in ("images", "labels")
    )
    return images.reshape(len(images), -1), labels


def predictions() -> dict[str, np.ndarray]:
    predict.main()
    with np.load("data/predictions.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_predictions_agree_with_scikit_learn(trained: Path) -> None:
    found = predictions()
    pixels, labels = split("train")
    pca = PCA(4, svd_solver="full").fit(pixels)
    classifier = KNeighborsClassifier(3, weights="distance", algorithm="brute").fit(
        pca.transform(pixels), labels
    )
    for name in ("validation", "test"):
        expected = (3 * classifier.predict_proba(pca.transform(split(name)[0])) + 1 / 3) / 4
        np.testing.assert_allclose(found[f"{name}_probabilities"], expected, atol=1e-4)
        assert found[f"{name}_probabilities"].dtype == np.float32


def test_history_has_one_row_of_scores(
    trained: Path,
) -> None:
    """Training scores are leave-one-out: no image is its own neighbor."""
    found = predictions()
    (row,) = pd.read_csv("data/history.csv").to_dict("records")
    assert {*row} == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    right = found["validation_probabilities"].argmax(axis=1) == found["validation_labels"]
    assert row["val_accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    pixels, labels = split("train")
    points = PCA(4, svd_solver="full").fit_transform(pixels)
    hits = 0
    for left_out in range(len(labels)):
        rest = np.arange(len(labels)) != left_out
        classifier = KNeighborsClassifier(3, weights="distance", algorithm="brute").fit(
            points[rest], labels[rest]
        )
        hits += classifier.predict(points[left_out : left_out + 1])[0] == labels[left_out]
    assert row["accuracy"] == pytest.approx(hits / len(labels), abs=1e-6)


def test_votes_are_weighted_by_inverse_distance() -> None:
    """No class has probability 0."""
    arrays: dict[str, np.ndarray] = {
        "points": np.array([[0.0], [4.0], [100.0]], np.float32),
        "labels": np.array([0, 1, 2], np.uint8),
    }
    (row,) = pca_knn.vote(arrays, np.array([[1.0]], np.float32), 2, 3)
    np.testing.assert_allclose(row, np.array([1.5 + 1 / 3, 0.5 + 1 / 3, 1 / 3]) / 3, rtol=1e-6)


def test_vote_at_distance_0_is_finite() -> None:
    arrays: dict[str, np.ndarray] = {
        "points": np.array([[0.0], [4.0]], np.float32),
        "labels": np.array([0, 1], np.uint8),
    }
    (row,) = pca_knn.vote(arrays, np.array([[4.0]], np.float32), 2, 2)
    np.testing.assert_allclose(row, [0.5 / 3, 2.5 / 3], atol=1e-5)


def test_parameters_and_multiply_adds_are_counted(trained: Path) -> None:
    found = predictions()
    assert found["parameters"] == 30 + 4 * 30 + 72 * 4 + 72
    assert found["multiply_adds"] == 4 * (30 + 72)


def test_second_run_writes_the_same_bytes(trained: Path) -> None:
    def outs() -> list[bytes]:
        return [Path(f"data/{name}").read_bytes() for name in ("model.onnx", "history.csv")]

    first = outs()
    train.main()
    assert outs() == first


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [("components", 31, 30), ("components", 73, 30), ("neighbors", 72, 71)],
)
def test_too_many_components_or_neighbors_are_rejected(
    trained: Path, edit: Edit, key: str, value: int, most: int
) -> None:
    """The limits are the numbers of pixels and of training images."""
    edit(f"model.pca_knn.{key}", value)
    expected = f"^params.yaml: model.pca_knn.{key}: expected at most {most}, found {value}$"
    with pytest.raises(StageError, match=expected):
        train.main()


def test_maximum_components_and_neighbors_are_accepted(trained: Path, edit: Edit) -> None:
    edit("model.pca_knn", {"components": 30, "neighbors": 71})
    train.main()
    assert len(predictions()["test_probabilities"]) == 30


def test_graph_agrees_with_vote(tmp_path: Path) -> None:
    """Sizes are random; images may have colors, lie close together or be equal."""
    for case in range(30):
        rng = np.random.default_rng(case)
        image = (*rng.integers(2, 6, 2).tolist(), *(3,) * int(rng.integers(2)))
        count, classes = int(rng.integers(20, 60)), int(rng.integers(2, 6))
        published = rng.integers(0, 256, (count, *image), dtype=np.uint8)
        labels = rng.integers(0, classes, count).astype(np.uint8)
        dataset, _ = described(*image, classes=classes)
        offset, divisor = float(rng.uniform(0, 99)), float(rng.uniform(20, 255))
        scaled = (published - np.float32(offset)) / np.float32(divisor)
        components, neighbors = int(rng.integers(1, 5)), int(rng.integers(1, 8))
        arrays = pca_knn.fit(scaled.astype(np.float32), labels, components)
        metadata = describe(dataset, "pca_knn", 1, 1)
        content = pca_knn.to_graph(arrays, neighbors, offset, divisor, metadata)
        (tmp_path / "model.onnx").write_bytes(content)
        images = rng.integers(0, 256, (25, *image), dtype=np.uint8)
        images[:5] = published[:5]  # at distance 0
        points = pca_knn.project(arrays, (images - np.float32(offset)) / np.float32(divisor))
        expected = pca_knn.vote(arrays, points, neighbors, classes)
        found = read_model(tmp_path / "model.onnx")(images)
        np.testing.assert_allclose(found[5:], expected[5:], atol=1e-4)
        np.testing.assert_allclose(found[:5], expected[:5], atol=2e-3)


def test_full_disk_leaves_no_predictions(trained: Path) -> None:
    """The error contains the path."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: 'data/predictions\.npz'$"):
            predict.main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in Path("data").iterdir() if "predictions" in path.name] == []
    predict.main()
    assert Path("data/predictions.npz").exists()
