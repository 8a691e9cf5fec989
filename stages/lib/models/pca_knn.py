"""Nearest neighbors among principal components: no network, and no TensorFlow."""

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

MOST_PIXELS = 20_000  # the covariance matrix of so many has 1.6 GB
NEAREST = 1e-6  # a smaller distance counts as this one, so that its inverse is a number


def fit(images: np.ndarray, labels: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Find the principal components of the training images, and project the images onto them.

    Args:
        images: Shape (n, height, width) or (n, height, width, 3), float32.
        labels: Shape (n,), uint8.
        components: Number of components, at most the number of pixels and of images.

    Returns:
        mean (pixels,), components (components, pixels), points (n, components), float32, and labels
        (n,), uint8.
    """
    pixels = images.reshape(len(images), -1)
    # An exact solver: the default one is randomized.
    pca = PCA(components, svd_solver="covariance_eigh")
    points = pca.fit_transform(pixels)
    arrays = {"mean": pca.mean_, "components": pca.components_, "points": points}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"labels": np.asarray(labels)}


def project(arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Project images, shape (n, height, width), onto the components: shape (n, components)."""
    points: np.ndarray = (images.reshape(len(images), -1) - arrays["mean"]) @ arrays["components"].T
    return points


def vote(
    arrays: Mapping[str, np.ndarray], points: np.ndarray | None, neighbors: int, classes: int
) -> np.ndarray:
    """Estimate probabilities from the nearest training images, weighted by inverse distance.

    Args:
        arrays: As from `fit`.
        points: Projected images, shape (n, components); None for the training images, each of
            which is then left out of its own vote.
        neighbors: Number of votes.
        classes: Number of classes.

    Returns:
        Rows that sum to 1, shape (n, classes), float32. One more vote is split among all classes,
        so that no probability is 0 (Perks 1947, Journal of the Institute of Actuaries 73:285).
    """
    search = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(arrays["points"])
    distances, chosen = search.kneighbors(points)
    weights = 1 / np.maximum(distances, NEAREST)
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
    """Convert to the content of a model file: `project` and `vote` in ONNX's operators.

    Args:
        arrays: As from `fit`.
        neighbors: Number of votes.
        offset: The gray level that is scaled to 0.
        divisor: The gray levels that are scaled to 1.
        metadata: As from `graph.describe`.
    """
    graph, classes = Graph(offset, divisor), len(metadata["classes"])
    pixels = graph.add("Flatten", graph.scaled)
    centered = graph.add("Sub", pixels, graph.constant(arrays["mean"]))
    points = graph.add("MatMul", centered, graph.constant(arrays["components"].T))
    # |a - b|^2 less |a|^2, which all candidates share, ranks the training images.
    products = graph.add("MatMul", points, graph.constant(-2 * arrays["points"].T))
    norms = graph.constant(np.square(arrays["points"], dtype=np.float64).sum(axis=1))
    ranked = graph.add("Add", products, norms)
    nearest = graph.add("TopK", ranked, graph.shape(neighbors), axis=1, largest=0) + "_indices"
    # The distances themselves come from the differences: the sum above loses small ones.
    candidates = graph.add("Gather", graph.constant(arrays["points"]), nearest)
    differences = graph.add("Sub", candidates, graph.add("Unsqueeze", points, graph.shape(1)))
    squares = graph.add("Mul", differences, differences)
    sums = graph.add("ReduceSum", squares, graph.shape(2), keepdims=1)
    distances = graph.add("Max", graph.add("Sqrt", sums), graph.constant(NEAREST))
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
    """Fit the components and measure once: training images by leave-one-out, and the held-out ones.

    Args:
        architecture: The section `model` of params.yaml.
        params: The section `train`, which nearest neighbors do not use.
        dataset: The content of dataset.json.
        folder: The normalized splits.
        held_out: The split to measure besides the training images.
        history: Receives the losses and accuracies, as of one epoch.

    Returns:
        The content of a model file. Its parameters are all stored numbers, the projected training
        images and their labels included; its multiply-adds are those of the projection and of the
        distances to all training images.

    Raises:
        StageError: There are fewer images or pixels than components, or fewer images than
            neighbors.
    """
    knn, scaling = architecture.pca_knn, read_json(folder / "scaling.json")
    classes = len(dataset["classes"])
    # Mode "c": scikit-learn would copy read-only arrays.
    splits = ("train", held_out)
    images, other_images = (
        np.load(folder / f"{name}_images.npy", mmap_mode="c") for name in splits
    )
    labels, other_labels = (np.load(folder / f"{name}_labels.npy") for name in splits)
    if images[0].size > MOST_PIXELS:
        raise StageError(
            f"params.yaml: model.kind: pca_knn is for images of at most {MOST_PIXELS:,} values, "
            f"these have {images[0].size:,}; use model.kind=cnn, or smaller images"
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
