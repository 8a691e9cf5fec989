"""Evaluate the predictions: accuracy, loss, calibration, confusion matrix, scores by class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wcwidth

from stages.lib.files import read_json, read_predictions, write_csv, write_json
from stages.lib.params import read_params
from stages.lib.results import calibration, metrics
from stages.lib.stage import StageError, run

RAW = Path("data/raw")
PREDICTIONS = Path("data/predictions.npz")
METRICS = Path("reports/metrics.json")
SCORES = Path("reports/scores.json")
CONFUSION = Path("reports/confusion.csv")
CLASSES = Path("reports/classes.csv")
VALIDATION_CLASSES = Path("reports/validation_classes.csv")
CALIBRATION = Path("reports/calibration.csv")

# The metrics for comparing experiments, few enough that `dvc metrics diff` fits on one screen.
MAIN = ("accuracy", "accuracy_low", "accuracy_high", "errors", "loss", "ece", "macro_f1")
MAIN_VALIDATION = ("accuracy", "loss")


def probability_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute the metrics that depend on the probabilities, not only on the predicted classes.

    Args:
        labels: Shape (n,), integers in [0, classes).
        probabilities: Shape (n, classes), rows sum to 1.

    Returns:
        loss (cross-entropy in nats), brier, and the expected calibration error with equal-width
        (ece) and equal-mass bins (ece_equal_mass), each with its mean (if_calibrated) and 95%
        quantile (if_calibrated_q95) for a perfectly calibrated model.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    scores = {
        "loss": metrics.cross_entropy(labels, probabilities),
        "brier": metrics.brier(labels, probabilities),
    }
    binnings = {
        "ece": calibration.bins_of_equal_width(confidence),
        "ece_equal_mass": calibration.bins_of_equal_mass(confidence),
    }
    for name, bins in binnings.items():
        mean, q95 = calibration.error_if_calibrated(confidence, bins)
        scores[name] = calibration.expected_error(confidence, correct, bins)
        scores |= {f"{name}_if_calibrated": mean, f"{name}_if_calibrated_q95": q95}
    return scores


def all_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute all metrics of a split.

    Args:
        labels: Shape (n,), integers in [0, classes).
        probabilities: Shape (n, classes), rows sum to 1.

    Returns:
        accuracy with its 95% confidence interval (accuracy_low, accuracy_high), errors
        (misclassified images), top2_accuracy, balanced_accuracy (mean recall of the classes with
        images), macro_f1 (mean F1 score of the classes among the labels or predictions), and
        `probability_scores`.
    """
    ranks = metrics.ranks(labels, probabilities)
    correct = int((ranks == 1).sum())
    low, high = metrics.accuracy_interval(correct, len(labels))
    numbers = [str(i) for i in range(probabilities.shape[1])]
    classes = metrics.per_class(labels, probabilities.argmax(axis=1), numbers)
    return {
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "errors": len(labels) - correct,
        "top2_accuracy": float((ranks <= 2).mean()),
        "balanced_accuracy": float(classes["recall"].mean()),
        "macro_f1": float(classes["f1"].mean()),
        **probability_scores(labels, probabilities),
    }


def scores_with_temperature(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute test metrics after temperature scaling, with T fitted on the validation split.

    Args:
        predictions: As returned by `read_predictions`.

    Returns:
        temperature, and `probability_scores` of the test split. Predicted classes do not change.

    Raises:
        StageError: There is no validation split.
    """
    labels = predictions["validation_labels"]
    if not len(labels):
        raise StageError(
            "evaluate.temperature: temperature scaling needs a validation split; "
            "set normalize.validation above 0, or evaluate.temperature to false"
        )
    temperature = calibration.best_temperature(labels, predictions["validation_probabilities"])
    scaled = calibration.scale_temperature(predictions["test_probabilities"], temperature)
    return {"temperature": temperature, **probability_scores(predictions["test_labels"], scaled)}


def score(predictions: Mapping[str, np.ndarray], *, temperature: bool) -> dict[str, Any]:
    """Compute all metrics of the test split, with sections for validation and temperature scaling.

    Args:
        predictions: As returned by `read_predictions`.
        temperature: Whether to add the metrics after temperature scaling.
    """
    labels, held_out = predictions["test_labels"], predictions["validation_labels"]
    scores: dict[str, Any] = {"test_examples": len(labels)}
    scores |= all_scores(labels, predictions["test_probabilities"])
    scores |= {name: int(predictions[name]) for name in ("parameters", "multiply_adds")}
    if len(held_out):
        scores["validation"] = all_scores(held_out, predictions["validation_probabilities"])
    if temperature:
        scores["temperature_scaling"] = scores_with_temperature(predictions)
    return scores


def split(scores: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split scores into those with the given names, in that order, and the rest."""
    main = {name: scores[name] for name in names}
    return main, {name: value for name, value in scores.items() if name not in main}


def class_table(labels: np.ndarray, probabilities: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Tabulate `metrics.per_class`, without rows if the split has no images."""
    table = metrics.per_class(labels, probabilities.argmax(axis=1), names)
    return table if len(labels) else table[:0]


def confusion_table(counts: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Convert a confusion matrix to long format, for `dvc plots`.

    Args:
        counts: Rows are labels, columns predicted classes, shape (classes, classes).
        names: Names of the classes.

    Returns:
        A row per cell, in row-major order: label and predicted (names), count (images), share (of
        the images with this label; NaN if there are none).
    """
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        shares = counts / counts.sum(axis=1, keepdims=True)
    label, predicted = np.divmod(np.arange(counts.size), len(names))
    named = {"label": np.take(names, label), "predicted": np.take(names, predicted)}
    return pd.DataFrame({**named, "count": counts.ravel(), "share": shares.ravel()})


def probability_lines(scores: Mapping[str, float]) -> list[str]:
    """Format the loss and the ECE, next to the ECE expected from a perfectly calibrated model."""
    mean, q95 = scores["ece_if_calibrated"], scores["ece_if_calibrated_q95"]
    return [
        f"  loss {scores['loss']:.4f}",
        f"  ECE {scores['ece']:.4f} (if calibrated: mean {mean:.4f}, 95% quantile {q95:.4f})",
    ]


def main_lines(title: str, scores: Mapping[str, Any]) -> list[str]:
    """Format the main metrics as lines of text.

    Args:
        title: Title of the dataset.
        scores: As returned by `score`.
    """
    low, high = scores["accuracy_low"], scores["accuracy_high"]
    lines = [
        f"{title}: {scores['errors']:,} of {scores['test_examples']:,} test images misclassified",
        f"  accuracy {scores['accuracy']:.4f} (95% confidence interval {low:.4f} to {high:.4f})",
        *probability_lines(scores),
    ]
    if scaled := scores.get("temperature_scaling"):
        temperature, errors = scaled["temperature"], scores["validation"]["errors"]
        lines.append(f"temperature scaling, T = {temperature:.3f} (validation errors: {errors:,}):")
        lines += probability_lines(scaled)
    return lines


def first_images(names: list[str], labels: np.ndarray, predicted: np.ndarray) -> list[str]:
    """Format labels and predictions of the first ten images as lines of text."""
    # CJK characters are two columns wide.
    width = max(wcwidth.width(name) for name in (*names, "predicted"))
    rows = [("label", "predicted", "")]
    for label, guess in zip(labels[:10], predicted[:10], strict=True):
        rows.append((names[label], names[guess], "" if label == guess else "misclassified"))
    columns = ((wcwidth.ljust(a, width), wcwidth.ljust(b, width), c) for a, b, c in rows)
    return ["first test images:", *("  ".join(("", *row)).rstrip() for row in columns)]


def most_confused(table: pd.DataFrame) -> list[str]:
    """Format the five most confused pairs of classes of a `confusion_table` as lines of text."""
    errors = table[(table["label"] != table["predicted"]) & (table["count"] > 0)]
    if errors.empty:
        return ["no misclassified test images"]
    pairs = errors.nlargest(5, "count")[["count", "label", "predicted"]].itertuples(index=False)
    lines = (f"{count:6,}  {label} predicted as {guess}" for count, label, guess in pairs)
    return ["most confused classes:", *lines]


def main() -> None:
    params = read_params().evaluate
    dataset = read_json(RAW / "dataset.json")
    names = dataset["classes"]
    predictions = read_predictions(PREDICTIONS, dataset)
    labels, probabilities = predictions["test_labels"], predictions["test_probabilities"]
    held_out = predictions["validation_labels"], predictions["validation_probabilities"]
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_table(metrics.confusion(labels, predicted, len(names)), names)
    scores = score(predictions, temperature=params.temperature)
    main_scores, others = split(scores, MAIN)
    if "validation" in others:
        validation, others["validation"] = split(others["validation"], MAIN_VALIDATION)
        main_scores["validation"] = validation

    write_csv(CONFUSION, confusion)
    write_csv(CLASSES, class_table(labels, probabilities, names))
    write_csv(VALIDATION_CLASSES, class_table(*held_out, names))
    write_csv(CALIBRATION, calibration.reliability(labels, probabilities))
    write_json(SCORES, others)
    write_json(METRICS, main_scores)  # last, so it exists only if all other outputs do
    lines = [*main_lines(dataset["title"], scores), *first_images(names, labels, predicted)]
    print("\n".join([*lines, *most_confused(confusion)]))


if __name__ == "__main__":
    run(main)
