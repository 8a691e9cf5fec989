"""Calibration: agreement of accuracy and confidence, the probability of the predicted class.

In all functions `labels` has shape (n,) and holds integers in [0, classes); `probabilities` has
shape (n, classes) and rows that sum to 1; `confidence` (float), `correct` (bool) and `bins`
(integers in [0, BINS)) have shape (n,).
"""

import numpy as np
import pandas as pd

from stages.lib.results.metrics import accuracy_interval, cross_entropy

BINS = 15  # as in Guo et al. 2017
PRIOR_DEVIATION = 0.5  # of ln(temperature)


def bins_of_equal_width(confidence: np.ndarray) -> np.ndarray:
    """Assign each image to one of `BINS` intervals of equal width that divide (0, 1]."""
    bins: np.ndarray = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return bins


def bins_of_equal_mass(confidence: np.ndarray) -> np.ndarray:
    """Assign each image to one of `BINS` bins with equally many images, as far as ties allow.

    Equal confidences share a bin, so the order of the images does not matter.
    """
    _, places, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts + 1) / 2  # of each confidence, from 0
    bins: np.ndarray = (mean_ranks * BINS // len(confidence)).astype(int)[places]
    return bins


def expected_error(confidence: np.ndarray, correct: np.ndarray, bins: np.ndarray) -> float:
    """Compute the expected calibration error: mean |accuracy - mean confidence| over the bins.

    Bins are weighted by their number of images (Guo et al. 2017, arXiv:1706.04599, equation 3;
    with bins of equal mass: Nixon et al. 2019, arXiv:1904.01685).

    Returns:
        The ECE, in [0, 1].
    """
    gaps = np.bincount(bins, correct - confidence.astype(np.float64))
    return float(np.abs(gaps).sum() / len(bins))


def error_if_calibrated(
    confidence: np.ndarray, bins: np.ndarray, draws: int = 200
) -> tuple[float, float]:
    """Estimate the ECE expected from a perfectly calibrated model with these confidences.

    Consistency resampling: each image is correct with a probability equal to its confidence
    (Broecker and Smith 2007, Weather and Forecasting 22:651). The random numbers are seeded.

    Args:
        confidence: Probability of the predicted class.
        bins: Bin of each image.
        draws: Number of resamples.

    Returns:
        Mean and 95% quantile over the resamples. An ECE above the quantile shows miscalibration.
    """
    rng = np.random.default_rng(0)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(draws))
    errors = [expected_error(confidence, correct, bins) for correct in drawn]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Tabulate a reliability diagram.

    Returns:
        A row per non-empty equal-width bin: low and high (limits of the bin), images,
        confidence (mean), accuracy, accuracy_low and accuracy_high (95% confidence interval).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = bins_of_equal_width(confidence)
    images, confidence_sums, hits = (
        np.bincount(bins, weights, BINS) for weights in (None, confidence, correct)
    )
    rows = []
    for i in np.flatnonzero(images):
        count, hit = int(images[i]), int(hits[i])
        means = (confidence_sums[i] / count, hit / count)
        rows.append((i / BINS, (i + 1) / BINS, count, *means, *accuracy_interval(hit, count)))
    columns = ["low", "high", "images", "confidence", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def scale_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Raise probabilities to the power 1 / T and renormalize them.

    For a softmax this equals softmax(logits / T) (Guo et al. 2017, equation 9). T above 1 lowers
    the confidence; the order of the classes does not change.

    Returns:
        Shape (n, classes), float64.
    """
    floor = np.finfo(np.float32).tiny
    powers = np.maximum(probabilities, floor).astype(np.float64) ** (1 / temperature)
    scaled: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def best_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Find the maximum a posteriori temperature in [1/100, 100].

    The model must not have been trained on these images. If it misclassifies none of them, the
    likelihood has no maximum: T would go to 0, and one error on later images would cost more than
    the others gain. A log-normal prior with median 1 prevents this (95% between 0.38 and 2.66;
    Murphy 2022, "Probabilistic Machine Learning", section 4.5). Its influence is negligible with
    thousands of images.
    """
    from scipy.optimize import minimize_scalar  # takes 0.5 s to import, rarely needed

    def negative_log_posterior(log: float) -> float:
        loss = cross_entropy(labels, scale_temperature(probabilities, np.exp(log)))
        return len(labels) * loss + (log / PRIOR_DEVIATION) ** 2 / 2

    end = np.log(100)
    found = minimize_scalar(
        negative_log_posterior, bounds=(-end, end), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))
