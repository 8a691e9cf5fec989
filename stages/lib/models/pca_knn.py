"""Nearest neighbors among principal components: no network, and no TensorFlow."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from stages.lib.files import read_json, write_csv
from stages.lib.models.weights import check_weights, make_room
from stages.lib.params import ModelParams, TrainParams
from stages.lib.stage import StageError


def fit(images: np.ndarray, labels: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Finds the principal components of the training images, and where each image lies among them.

    Args:
        images: Shape (n, height, width), float32.
        labels: Shape (n,), uint8.
        components: How many, at most as many as there are pixels or images.

    Returns:
        mean (pixels,), components (components, pixels), points (n, components), float32, and labels
        (n,), uint8.
    """
    pixels = images.reshape(len(images), -1)
    pca = PCA(components, svd_solver="covariance_eigh")  # exact; the default one draws at random
    points = pca.fit_transform(pixels)
    arrays = {"mean": pca.mean_, "components": pca.components_, "points": points}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {
        "labels": np.asarray(labels)
    }


def vote(
    arrays: Mapping[str, np.ndarray], points: np.ndarray | None, neighbors: int, classes: int
) -> np.ndarray:
    """Probabilities from the classes of the nearest training images, each counting by the inverse of its distance.

    Args:
        arrays: As from `fit`.
        points: Images among the components, shape (n, components); None for the training images,
            each without itself.
        neighbors: How many vote.
        classes: Number of classes.

    Returns:
        Rows that add up to 1, shape (n, classes), float32. One more vote is split among all
        classes, so that none is impossible (Perks 1947, Journal of the Institute of Actuaries
        73:285).
    """
    search = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(arrays["points"])
    distances, chosen = search.kneighbors(points)
    weights = 1 / np.maximum(distances, 1e-6)
    weights *= neighbors / weights.sum(axis=1, keepdims=True)
    votes = np.full((len(chosen), classes), 1 / classes)
    for place in range(neighbors):
        votes[np.arange(len(chosen)), arrays["labels"][chosen[:, place]]] += weights[:, place]
    probabilities: np.ndarray = (votes / (neighbors + 1)).astype(np.float32)
    return probabilities


def project(arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Where images, shape (n, height, width), lie among the components, shape (n, components)."""
    points: np.ndarray = (images.reshape(len(images), -1) - arrays["mean"]) @ arrays["components"].T
    return points


def train(
    architecture: ModelParams,
    params: TrainParams,
    folder: Path,
    held_out: str,
    weights: Path,
    history: Path,
) -> None:
    """Fits the components, and measures once: the training images each without itself, and the held-out ones.

    Args:
        architecture: The section `model` of params.yaml.
        params: The section `train`, of which nothing is used.
        folder: The normalized splits.
        held_out: The split to measure beside the training images.
        weights: Where the arrays go, as HDF5.
        history: Where the two losses and accuracies go, as of one epoch.

    Raises:
        StageError: There are fewer images or pixels than components, or fewer images than
            neighbors.
    """
    knn, classes = architecture.pca_knn, int(read_json(folder / "scaling.json")["classes"])
    # mode "c": scikit-learn would copy what may not be written to.
    images, other_images = (
        np.load(folder / f"{split}_images.npy", mmap_mode="c") for split in ("train", held_out)
    )
    labels, other_labels = (
        np.load(folder / f"{split}_labels.npy") for split in ("train", held_out)
    )
    _expect("components", knn.components, min(len(images), images[0].size))
    _expect("neighbors", knn.neighbors, len(images) - 1)
    arrays = fit(images, labels, knn.components)
    row: dict[str, float] = {"epoch": 1}
    for prefix, truth, points in (
        ("", labels, None),
        ("val_", other_labels, project(arrays, other_images)),
    ):
        probabilities = vote(arrays, points, knn.neighbors, classes)
        row[f"{prefix}loss"] = float(-np.log(probabilities[np.arange(len(truth)), truth]).mean())
        row[f"{prefix}accuracy"] = float((probabilities.argmax(axis=1) == truth).mean())
    print("  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "epoch"))
    write_csv(history, pd.DataFrame([row]))
    make_room(weights, sum(array.nbytes for array in arrays.values()))
    with h5py.File(weights, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def _expect(name: str, value: int, most: int) -> None:
    if value > most:
        raise StageError(
            f"params.yaml: model.pca_knn.{name}: expected at most {most:,}, found {value:,}"
        )


def restore(
    params: ModelParams, scaling: Mapping[str, Any], weights: Path
) -> tuple[Callable[[np.ndarray], np.ndarray], int, int]:
    """What `train` fitted.

    Args:
        params: The section `model` of params.yaml.
        scaling: What normalize wrote into scaling.json.
        weights: As from `train`.

    Returns:
        As from `models.restore`. The parameters are all numbers that are kept, the training images'
        points and labels among them; the multiply-adds are those of the projection and of the
        distances to all points.

    Raises:
        StageError: The arrays are not those of the model.
    """
    knn = params.pca_knn
    count, height, width = scaling["arrays"]["train_images"]["shape"]
    pixels, classes = height * width, scaling["classes"]
    shapes = {
        "mean": (pixels,),
        "components": (knn.components, pixels),
        "points": (count, knn.components),
    }
    expected = {name: f"float32 of shape {shape}" for name, shape in shapes.items()}
    check_weights(weights, expected | {"labels": f"uint8 of shape {(count,)}"}, params.kind)
    with h5py.File(weights) as file:
        arrays = {name: file[name][()] for name in file}
    if (arrays["labels"] >= classes).any():
        raise StageError(
            f"{weights}: expected labels below {classes}, found {arrays['labels'].max()}; dvc repro"
        )
    parameters = sum(array.size for array in arrays.values())
    multiply_adds = knn.components * (pixels + count)
    return (
        lambda images: vote(arrays, project(arrays, images), knn.neighbors, classes),
        parameters,
        multiply_adds,
    )
