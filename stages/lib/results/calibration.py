"""Whether a model is right as often as it is sure: labels and probabilities in, numbers out."""

import numpy as np
import pandas as pd

from stages.lib.results.metrics import accuracy_interval, cross_entropy

BINS = 15  # of confidences, as Guo et al. 2017 have them


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
    """The bin of each image where each bin has as many images as the next, as far as equal confidences allow.

    Args:
        confidence: Probability of the predicted class, shape (n,).

    Returns:
        Numbers in [0, BINS), shape (n,); equal confidences are in one bin, so that their order does
        not matter.
    """
    _, places, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middles = (
        np.cumsum(counts) - (counts + 1) / 2
    )  # mean position, from 0, of those with this confidence
    bins: np.ndarray = (middles * BINS // len(confidence)).astype(int)[places]
    return bins


def expected_error(confidence: np.ndarray, right: np.ndarray, bins: np.ndarray) -> float:
    """Expected calibration error: distance of accuracy from mean confidence, mean over the images' bins.

    Guo et al. 2017, arXiv:1706.04599, eq. 3; bins of equal mass: Nixon et al. 2019,
    arXiv:1904.01685.

    Args:
        confidence: Probability of the predicted class, shape (n,).
        right: Whether the prediction is right, shape (n,).
        bins: The bin of each image, shape (n,).

    Returns:
        A number in [0, 1].
    """
    return float(np.abs(np.bincount(bins, right - confidence.astype(np.float64))).sum() / len(bins))


def error_of_perfect(confidence: np.ndarray, bins: np.ndarray, draws: int = 200) -> float:
    """What `expected_error` would be by chance if each confidence were the probability to be right.

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
    return float(np.mean([expected_error(confidence, right, bins) for right in drawn]))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """A reliability diagram as a table.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        A row per bin of equal width that has images: low and high (its ends), images, confidence
        and accuracy (means), accuracy_low and accuracy_high (95 % interval).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    images, sums, correct = (
        np.bincount(bins_of_equal_width(confidence), weights, BINS)
        for weights in (None, confidence, right)
    )
    rows = [
        (
            i / BINS,
            (i + 1) / BINS,
            int(count),
            total / count,
            hits / count,
            *accuracy_interval(int(hits), int(count)),
        )
        for i, (count, total, hits) in enumerate(zip(images, sums, correct, strict=True))
        if count
    ]
    columns = ["low", "high", "images", "confidence", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Makes probabilities more or less confident, in the same order, by their power of 1 / T.

    Of a network with a softmax, that is softmax(logits / T) (Guo et al. 2017, eq. 9).

    Args:
        probabilities: Shape (n, classes), rows add up to 1.
        temperature: T; above 1 less confident, below 1 more.

    Returns:
        The same shape, float64, rows add up to 1.
    """
    powers = np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64) ** (
        1 / temperature
    )
    scaled: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def best_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature with the lowest cross-entropy, from 1/100 to 100.

    Args:
        labels: Shape (n,), whole numbers in [0, classes); of images that the model was not trained
            on.
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        T for `tempered`.
    """
    from scipy.optimize import minimize_scalar  # half a second to import, and seldom asked for

    end = np.log(100)
    found = minimize_scalar(
        lambda log: cross_entropy(labels, tempered(probabilities, np.exp(log))),
        bounds=(-end, end),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))
