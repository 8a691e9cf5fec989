"""Classification metrics.

In all functions `labels` and `predicted` have shape (n,) and hold integers in [0, classes);
`probabilities` has shape (n, classes) and rows that sum to 1; `names` are class names.

Each metric is a few lines of NumPy, tested against scikit-learn and SciPy, which take longer to
import than the stages that use this module take to run.
"""

from collections.abc import Sequence
from math import nan, sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd

Z = NormalDist().inv_cdf(0.975)  # quantile for a 95% confidence interval


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """Compute the 95% Wilson score interval of a proportion (Wilson 1927, JASA 22:209).

    Args:
        correct: Number of correctly classified images.
        count: Number of images, at least 1.

    Returns:
        Lower and upper limit, in [0, 1].
    """
    share, weight = correct / count, 1 + Z**2 / count
    middle = (share + Z**2 / (2 * count)) / weight
    half = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / weight
    # Without the bounds, rounding errors could exclude proportions of 0 and 1, or exceed them.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the mean of -ln(probability of the label), in nats, the training loss."""
    # scikit-learn's log_loss clips float32 at 1.2e-7, or 16 nats; Keras does not.
    of_labels = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_labels, np.finfo(np.float32).tiny)).mean())


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the mean squared distance of probabilities from one-hot labels, in [0, 2].

    Brier 1950, Monthly Weather Review 78:1, equation 2.
    """
    # scikit-learn's brier_score_loss scales two classes differently and expects one column.
    squares = np.einsum("ij,ij->i", probabilities, probabilities, dtype=np.float64)
    of_labels = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float((squares - 2 * of_labels + 1).mean())


def ranks(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Rank the label among the classes by decreasing probability.

    Returns:
        Shape (n,), integers in [1, classes]; 1 if the prediction is correct. Among equal
        probabilities the first class ranks first, as in `argmax`.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    places: np.ndarray = (order == labels[:, None]).argmax(axis=1) + 1
    return places


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute the normalized margin of each label; low values indicate label errors.

    The margin is (label probability - highest probability of another class + 1) / 2 (Northcutt et
    al. 2021, "Confident learning", JAIR 70:1373). The model must not have been trained on these
    images.

    Returns:
        Shape (n,), float64, in [0, 1]; below 0.5 if another class is more probable.
    """
    rows = np.arange(len(labels))
    others = probabilities.astype(np.float64)
    given = others[rows, labels]
    others[rows, labels] = -1
    quality: np.ndarray = (given - others.max(axis=1) + 1) / 2
    return quality


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Compute the confusion matrix.

    Returns:
        Number of images by label (rows) and predicted class (columns), shape (classes, classes),
        int64.
    """
    counts: np.ndarray = np.bincount(labels.astype(int) * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def per_class(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Compute recall, precision and F1 score of each class.

    Returns:
        A row per class: class, recall, recall_low and recall_high (its 95% confidence interval),
        precision, f1, images. Undefined values are NaN: recall of a class without images,
        precision of a class without predictions, F1 score of a class with neither. The means over
        the rows thus equal scikit-learn's balanced accuracy and macro F1.
    """
    counts = confusion(labels, predicted, len(names))
    hits, images, predictions = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    intervals = [
        accuracy_interval(k, n) if n else (nan, nan) for k, n in zip(hits, images, strict=True)
    ]
    low, high = np.transpose(intervals)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        columns = {
            "recall": hits / images,
            "recall_low": low,
            "recall_high": high,
            "precision": hits / predictions,
            "f1": 2 * hits / (images + predictions),
        }
    return pd.DataFrame({"class": names, **columns, "images": images})
