"""k-nearest neighbors on principal components, without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors

from stages.lib.files import read_json, write_csv
from stages.lib.models.graph import Graph, describe
from stages.lib.params import ModelParams, TrainParams
from stages.lib.stage import StageError

MAX_PIXELS = 20_000  # their covariance matrix takes 1.6 GB
MIN_DISTANCE = 1e-6  # a lower bound on distances, so that their inverses are finite


def fit(images: np.ndarray, labels: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Fit principal components to the training images, and project the images onto them.

    Args:
        images: Shape (n, height, width) or (n, height, width, 3), float32.
        labels: Shape (n,), uint8.
        components: Number of components, at most the number of pixels and of images.

    Returns:
        mean (pixels,), components (components, pixels), points (n, components), float32, and labels
        (n,), uint8.
    """
    pixels = images.reshape(len(images), -1)
    # An exact solver, because the default is randomized.
    pca = PCA(components, svd_solver="covariance_eigh")
    points = pca.fit_transform(pixels)
    arrays = {"mean": pca.mean_, "components": pca.components_, "points": points}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"labels": np.asarray(labels)}


def project(arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Project images onto the principal components.

    Args:
        arrays: As returned by `fit`.
        images: Shape (n, height, width) or (n, height, width, 3), float32.

    Returns:
        Shape (n, components), float32.
    """
    points: np.ndarray = (images.reshape(len(images), -1) - arrays["mean"]) @ arrays["components"].T
    return points


def vote(
    arrays: Mapping[str, np.ndarray], points: np.ndarray | None, neighbors: int, classes: int
) -> np.ndarray:
    """Estimate probabilities from the nearest training images, weighted by inverse distance.

    Args:
        arrays: As returned by `fit`.
        points: Projected images, shape (n, components); None for leave-one-out on the training
            images.
        neighbors: Number of neighbors.
        classes: Number of classes.

    Returns:
        Probabilities, shape (n, classes), float32, rows sum to 1. One additional vote is split
        evenly among all classes, so that no probability is 0 (Perks 1947, Journal of the Institute
        of Actuaries 73:285).
    """
    search = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(arrays["points"])
    distances, chosen = search.kneighbors(points)
    weights = 1 / np.maximum(distances, MIN_DISTANCE)
    weights *= neighbors / weights.sum(axis=1, keepdims=True)
    one_hot = np.eye(classes)[arrays["labels"][chosen]]
    votes = (weights[:, :, None] * one_hot).sum(axis=1) + 1 / classes
    probabilities: np.ndarray = (votes / (neighbors + 1)).astype(np.float32)
    return probabilities


def to_graph(
    arrays: Mapping[str, np.ndarray],
    neighbors: int,
    offset: float,
    divisor: float,
    metadata: Mapping[str, Any],
) -> bytes:
    """Convert `project` and `vote` to the content of a model file.

    Args:
        arrays: As returned by `fit`.
        neighbors: Number of neighbors.
        offset: Gray level that maps to 0.
        divisor: Number of gray levels per unit of intensity.
        metadata: As returned by `graph.describe`.
    """
    graph, classes = Graph(offset, divisor), len(metadata["classes"])
    pixels = graph.add("Flatten", graph.scaled)
    centered = graph.add("Sub", pixels, graph.constant(arrays["mean"]))
    points = graph.add("MatMul", centered, graph.constant(arrays["components"].T))
    # Rank the training images b by |a - b|^2 - |a|^2, since |a|^2 is the same for all of them.
    products = graph.add("MatMul", points, graph.constant(-2 * arrays["points"].T))
    norms = graph.constant(np.square(arrays["points"], dtype=np.float64).sum(axis=1))
    ranked = graph.add("Add", products, norms)
    nearest = graph.add("TopK", ranked, graph.shape(neighbors), axis=1, largest=0) + "_indices"
    # Compute distances from differences, because the expanded form loses precision for small ones.
    candidates = graph.add("Gather", graph.constant(arrays["points"]), nearest)
    differences = graph.add("Sub", candidates, graph.add("Unsqueeze", points, graph.shape(1)))
    squares = graph.add("Mul", differences, differences)
    sums = graph.add("ReduceSum", squares, graph.shape(2), keepdims=1)
    distances = graph.add("Max", graph.add("Sqrt", sums), graph.constant(MIN_DISTANCE))
    weights = graph.add("Reciprocal", distances)
    total = graph.add("ReduceSum", weights, graph.shape(1), keepdims=1)
    shares = graph.add("Mul", graph.add("Div", weights, total), graph.constant(neighbors))
    one_hot = graph.constant(np.eye(classes)[arrays["labels"]])
    votes = graph.add("Mul", graph.add("Gather", one_hot, nearest), shares)
    counts = graph.add("ReduceSum", votes, graph.shape(1), keepdims=0)
    smoothed = graph.add("Add", counts, graph.constant(1 / classes))
    return graph.finish(graph.add("Div", smoothed, graph.constant(neighbors + 1)), metadata)


def train(
    architecture: ModelParams,
    params: TrainParams,
    dataset: Mapping[str, Any],
    folder: Path,
    held_out: str,
    history: Path,
) -> bytes:
    """Fit the components; evaluate leave-one-out on the training images, and on the held-out split.

    Args:
        architecture: The section `model` of params.yaml.
        params: The section `train`, unused.
        dataset: The content of dataset.json.
        folder: Folder of the normalized splits.
        held_out: Name of the split to evaluate besides the training images.
        history: Path of the CSV file for losses and accuracies, a single row.

    Returns:
        The content of a model file. Its parameters are all stored numbers, including the projected
        training images and their labels; its multiply-adds are those of the projection and of the
        distances to all training images.

    Raises:
        StageError: There are fewer images or pixels than components, or too few images for the
            number of neighbors, or the images have more than `MAX_PIXELS` values.
    """
    knn, scaling = architecture.pca_knn, read_json(folder / "scaling.json")
    classes = len(dataset["classes"])
    # Mode "c": scikit-learn would copy read-only arrays.
    splits = ("train", held_out)
    images, other_images = (
        np.load(folder / f"{name}_images.npy", mmap_mode="c") for name in splits
    )
    labels, other_labels = (np.load(folder / f"{name}_labels.npy") for name in splits)
    if images[0].size > MAX_PIXELS:
        raise StageError(
            f"params.yaml: model.kind: pca_knn supports at most {MAX_PIXELS:,} values per image, "
            f"found {images[0].size:,}; use model.kind=cnn, or smaller images"
        )
    _check("components", knn.components, min(len(images), images[0].size))
    _check("neighbors", knn.neighbors, len(images) - 1)
    arrays = fit(images, labels, knn.components)
    row: dict[str, float] = {"epoch": 1}
    measured = (("", labels, None), ("val_", other_labels, project(arrays, other_images)))
    for prefix, truth, points in measured:
        probabilities = vote(arrays, points, knn.neighbors, classes)
        row[f"{prefix}loss"] = log_loss(truth, probabilities, labels=range(classes))
        row[f"{prefix}accuracy"] = float((probabilities.argmax(axis=1) == truth).mean())
    print("  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "epoch"))
    write_csv(history, pd.DataFrame([row]))
    parameters = sum(array.size for array in arrays.values())
    multiply_adds = knn.components * (images[0].size + len(images))
    metadata = describe(dataset, architecture.kind, parameters, multiply_adds)
    return to_graph(arrays, knn.neighbors, scaling["offset"], scaling["divisor"], metadata)


def _check(name: str, value: int, most: int) -> None:
    if value > most:
        raise StageError(
            f"params.yaml: model.pca_knn.{name}: expected at most {most:,}, found {value:,}"
        )
