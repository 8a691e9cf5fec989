"""Labels and probabilities in, numbers out."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

BINS = 15  # of confidences, as Guo et al. 2017 have them


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy, by Wilson's score (Wilson 1927, JASA 22:209, "Probable inference").

    Args:
        correct: Images whose most probable class is the label.
        count: All images.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


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
    # scikit-learn's brier_score_loss has another scale for two classes, and wants them in one column.
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((probabilities.astype(np.float64) - truth) ** 2).sum(axis=1).mean())


def ranks(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Where the label stands among the classes, the most probable first.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes).

    Returns:
        1 where the prediction is right, up to classes; shape (n,); of equal probabilities the first class counts first.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    places: np.ndarray = (order == labels[:, None]).argmax(axis=1) + 1
    return places


def bins_of_equal_width(confidence: np.ndarray) -> np.ndarray:
    """The bin of each image where (0, 1] is cut into `BINS` equal pieces.

    Args:
        confidence: Probability of the predicted class, shape (n,).

    Returns:
        Numbers in [0, BINS), shape (n,).
    """
    bins: np.ndarray = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return bins


def bins_of_equal_mass(confidence: np.ndarray) -> np.ndarray:
    """The bin of each image where each bin has as many images as the next, give or take one.

    Args:
        confidence: Probability of the predicted class, shape (n,).

    Returns:
        Numbers in [0, BINS), shape (n,); of equal confidences the first image comes first.
    """
    bins = np.empty(len(confidence), int)
    bins[np.argsort(confidence, kind="stable")] = np.arange(len(confidence)) * BINS // len(confidence)
    return bins


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: np.ndarray) -> float:
    """Expected calibration error: distance of accuracy from mean confidence, mean over the images' bins.

    Guo et al. 2017, arXiv:1706.04599, eq. 3; bins of equal mass: Nixon et al. 2019, arXiv:1904.01685.

    Args:
        confidence: Probability of the predicted class, shape (n,).
        right: Whether the prediction is right, shape (n,).
        bins: The bin of each image, shape (n,).

    Returns:
        A number in [0, 1].
    """
    return float(np.abs(np.bincount(bins, right - confidence.astype(np.float64))).sum() / len(bins))


def calibration_error_of_perfect(confidence: np.ndarray, bins: np.ndarray, draws: int = 200) -> float:
    """What `calibration_error` would be by chance if each confidence were the probability to be right.

    Consistency resampling: Broecker and Smith 2007, Weather and Forecasting 22:651.

    Args:
        confidence: Probability of the predicted class, shape (n,).
        bins: The bin of each image, shape (n,).
        draws: How often right and wrong are drawn, from a fixed seed.

    Returns:
        The mean over the draws: the zero line of the calibration error.
    """
    rng = np.random.default_rng(0)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([calibration_error(confidence, right, bins) for right in drawn]))


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """A reliability diagram as a table.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        A row per bin of equal width that has images: low and high (its ends), images, confidence and accuracy (means),
        accuracy_low and accuracy_high (95 % interval).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    images, sums, correct = (
        np.bincount(bins_of_equal_width(confidence), weights, BINS) for weights in (None, confidence, right)
    )
    rows = [
        (i / BINS, (i + 1) / BINS, int(count), total / count, hits / count, *accuracy_interval(int(hits), int(count)))
        for i, (count, total, hits) in enumerate(zip(images, sums, correct, strict=True))
        if count
    ]
    columns = ["low", "high", "images", "confidence", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Makes probabilities more or less confident, in the same order: softmax(logits / T) (Guo et al. 2017, eq. 9).

    Args:
        probabilities: Shape (n, classes), rows add up to 1.
        temperature: T; above 1 less confident, below 1 more.

    Returns:
        The same shape, float64, rows add up to 1.
    """
    # ln p is the logits but for a number added to all of a row, which softmax does not see.
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64))
    scaled: np.ndarray = softmax(logits / temperature, axis=1)
    return scaled


def best_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature with the lowest cross-entropy, from 1/100 to 100.

    Args:
        labels: Shape (n,), whole numbers in [0, classes); of images that the model was not trained on.
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        T for `tempered`.
    """
    end = np.log(100)
    found = minimize_scalar(
        lambda log: cross_entropy(labels, tempered(probabilities, np.exp(log))),
        bounds=(-end, end),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts every pair of label and predicted class.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        predicted: The same.
        classes: Number of classes.

    Returns:
        Rows are labels, columns predicted classes, shape (classes, classes), int64.
    """
    counts: np.ndarray = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return counts


def per_class(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Recall, precision and F1 of each class.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        predicted: The same.
        names: Names of the classes.

    Returns:
        A row per class: class, recall (share of its images that were found), recall_low and recall_high (its 95 %
        interval), precision (share of its predictions that are right), f1 (their harmonic mean), images. A quotient by
        zero counts as 0, with an interval from 0 to 1.
    """
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(names)), zero_division=0
    )
    found = np.rint(recall * images).astype(int)
    intervals = [accuracy_interval(int(k), int(n)) if n else (0.0, 1.0) for k, n in zip(found, images, strict=True)]
    low, high = np.transpose(intervals)
    scores = {"recall": recall, "recall_low": low, "recall_high": high, "precision": precision, "f1": f1}
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
    return [(int(i), int(j), int(wrong[i, j])) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
