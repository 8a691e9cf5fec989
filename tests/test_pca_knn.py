"""Nearest neighbors among principal components, against scikit-learn's own classifier and by hand."""

import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from stages import fetch, normalize, predict, train
from stages.lib.models import pca_knn
from stages.lib.stage import StageError

Edit = Callable[[str, object], None]


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


def test_predictions_are_those_of_scikit_learns_classifier_on_the_components(trained: Path) -> None:
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


def test_history_has_one_row_of_held_out_images_and_of_training_images_each_without_itself(
    trained: Path,
) -> None:
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


def test_a_vote_counts_by_the_inverse_of_the_distance_and_leaves_no_class_impossible() -> None:
    arrays: dict[str, np.ndarray] = {
        "points": np.array([[0.0], [4.0], [100.0]], np.float32),
        "labels": np.array([0, 1, 2], np.uint8),
    }
    (row,) = pca_knn.vote(arrays, np.array([[1.0]], np.float32), 2, 3)
    np.testing.assert_allclose(row, np.array([1.5 + 1 / 3, 0.5 + 1 / 3, 1 / 3]) / 3, rtol=1e-6)


def test_an_image_that_was_trained_on_is_certain_and_still_a_number() -> None:
    arrays: dict[str, np.ndarray] = {
        "points": np.array([[0.0], [4.0]], np.float32),
        "labels": np.array([0, 1], np.uint8),
    }
    (row,) = pca_knn.vote(arrays, np.array([[4.0]], np.float32), 2, 2)
    np.testing.assert_allclose(row, [0.5 / 3, 2.5 / 3], atol=1e-5)


def test_what_is_kept_and_multiplied_is_counted(trained: Path) -> None:
    found = predictions()
    assert found["parameters"] == 30 + 4 * 30 + 72 * 4 + 72
    assert found["multiply_adds"] == 4 * (30 + 72)


def test_a_second_run_writes_the_same_bytes(trained: Path) -> None:
    def outs() -> list[bytes]:
        return [Path(f"data/{name}").read_bytes() for name in ("model.weights.h5", "history.csv")]

    first = outs()
    train.main()
    assert outs() == first


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [("components", 31, 30), ("components", 73, 30), ("neighbors", 72, 71)],
)
def test_more_components_than_pixels_and_more_neighbors_than_images_are_refused(
    trained: Path, edit: Edit, key: str, value: int, most: int
) -> None:
    edit(f"model.pca_knn.{key}", value)
    expected = f"^params.yaml: model.pca_knn.{key}: expected at most {most}, found {value}$"
    with pytest.raises(StageError, match=expected):
        train.main()


def test_as_many_as_there_are_do(trained: Path, edit: Edit) -> None:
    edit("model.pca_knn", {"components": 30, "neighbors": 71})
    train.main()
    assert len(predictions()["test_probabilities"]) == 30


def damaged(name: str, array: np.ndarray) -> None:
    with h5py.File("data/model.weights.h5", "r+") as file:
        del file[name]
        file[name] = array


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        (
            "points",
            np.zeros((72, 5), np.float32),
            "expected weights of model.pca_knn .*'points' as .*72, 4.*72, 5.*",
        ),
        (
            "mean",
            np.zeros(30),
            "expected weights of model.pca_knn .*'mean' as float32 .* found float64 .*",
        ),
        ("labels", np.full(72, 3, np.uint8), "expected labels below 3, found 3; dvc repro"),
    ],
)
def test_other_arrays_are_refused(trained: Path, name: str, array: np.ndarray, reason: str) -> None:
    damaged(name, array)
    with pytest.raises(StageError, match=f"^data/model.weights.h5: {reason}$"):
        predict.main()
    assert not Path("data/predictions.npz").exists()


def test_a_full_disk_leaves_no_predictions_and_is_told(trained: Path) -> None:
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
