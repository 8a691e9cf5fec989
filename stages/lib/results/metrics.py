"""Labels and probabilities in, numbers out.

Each is a line or two of NumPy, and held against scikit-learn and scipy in tests: these take a
second to import, in stages that run for another.
"""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd

Z = NormalDist().inv_cdf(0.975)  # quantile of a 95 % interval


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy, by Wilson's score (Wilson 1927, JASA 22:209, "Probable inference").

    Args:
        correct: Images whose most probable class is the label.
        count: All images.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    share, weight = correct / count, 1 + Z**2 / count
    middle = (share + Z**2 / (2 * count)) / weight
    half = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / weight
    return min(share, middle - half), max(
        share, middle + half
    )  # which rounding would undo at 0 and 1


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over the images of -ln(probability of the label), in nats; what training minimizes.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        0 for certainty in the right class, ln(classes) for equal probabilities.
    """
    # scikit-learn's log_loss clips float32 at 1.2e-7, 16 nats, which Keras does not.
    of_labels = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_labels, np.finfo(np.float32).tiny)).mean())


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over the images of the squared distance of the probabilities from the truth (Brier 1950, MWR 78:1, eq. 2).

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        0 for certainty in the right class, 2 for certainty in a wrong one.
    """
    # scikit-learn's brier_score_loss has another scale for two classes, and wants them in one
    # column.
    squares = np.einsum("ij,ij->i", probabilities, probabilities, dtype=np.float64)
    of_labels = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float((squares - 2 * of_labels + 1).mean())


def ranks(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Where the label stands among the classes, the most probable first.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes).

    Returns:
        1 where the prediction is right, up to classes; shape (n,); of equal probabilities the first
        class counts first.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    places: np.ndarray = (order == labels[:, None]).argmax(axis=1) + 1
    return places


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts every pair of label and predicted class.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        predicted: The same.
        classes: Number of classes.

    Returns:
        Rows are labels, columns predicted classes, shape (classes, classes), int64.
    """
    counts: np.ndarray = np.bincount(labels.astype(int) * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def per_class(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Recall, precision and F1 of each class.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        predicted: The same.
        names: Names of the classes.

    Returns:
        A row per class: class, recall (share of its images that were found), recall_low and
        recall_high (its 95 % interval), precision (share of its predictions that are right), f1
        (their harmonic mean), images. A quotient by zero counts as 0, with an interval from 0 to 1.
    """
    counts = confusion(labels, predicted, len(names))
    right, images, guesses = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    intervals = [
        accuracy_interval(k, n) if n else (0.0, 1.0) for k, n in zip(right, images, strict=True)
    ]
    low, high = np.transpose(intervals)
    recall, precision = right / np.maximum(images, 1), right / np.maximum(guesses, 1)
    f1 = 2 * right / np.maximum(images + guesses, 1)
    scores = {
        "recall": recall,
        "recall_low": low,
        "recall_high": high,
        "precision": precision,
        "f1": f1,
    }
    return pd.DataFrame({"class": names, **scores, "images": images})


def confused_pairs(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of different classes that were confused, most often first.

    Args:
        counts: Rows are labels, columns predicted classes, shape (classes, classes).

    Returns:
        (label, predicted, how often), without the pairs that never were.
    """
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [
        (int(i), int(j), int(wrong[i, j]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
    ]
