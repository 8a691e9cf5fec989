"""Measures the predictions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib.files import read_json, read_predictions, write_csv, write_json
from stages.lib.params import read_params
from stages.lib.results import calibration, metrics
from stages.lib.stage import run

DATASET = Path("data/raw/dataset.json")
PREDICTIONS = Path("data/predictions.npz")
METRICS = Path("reports/metrics.json")
CONFUSION = Path("reports/confusion.csv")
CLASSES = Path("reports/classes.csv")
VALIDATION_CLASSES = Path("reports/validation_classes.csv")
CALIBRATION = Path("reports/calibration.csv")


def quality(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How good the probabilities are.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        loss (nats), brier, and the expected calibration error over bins of equal width and of equal
        mass, each beside what a perfectly calibrated model with these confidences would get by
        chance.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    scores = {
        "loss": metrics.cross_entropy(labels, probabilities),
        "brier": metrics.brier(labels, probabilities),
    }
    for name, bins_of in (
        ("ece", calibration.bins_of_equal_width),
        ("ece_equal_mass", calibration.bins_of_equal_mass),
    ):
        bins = bins_of(confidence)
        scores[name] = calibration.expected_error(confidence, right, bins)
        scores[f"{name}_if_perfect"] = calibration.error_of_perfect(confidence, bins)
    return scores


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All numbers of one split.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        accuracy, errors (images), top2_accuracy, macro_f1 (mean over the classes), and those of
        `quality`.
    """
    ranks = metrics.ranks(labels, probabilities)
    classes = [str(i) for i in range(probabilities.shape[1])]
    return {
        "accuracy": float((ranks == 1).mean()),
        "errors": int((ranks > 1).sum()),
        "top2_accuracy": float((ranks <= 2).mean()),
        "macro_f1": float(
            metrics.per_class(labels, probabilities.argmax(axis=1), classes)["f1"].mean()
        ),
        **quality(labels, probabilities),
    }


def with_temperature(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Quality on test after one temperature, chosen on validation, has made the probabilities more or less confident.

    Args:
        predictions: As from `read_predictions`.

    Returns:
        temperature, and those of `quality`; the predicted classes, and so the accuracy, are the
        same.
    """
    temperature = calibration.best_temperature(
        predictions["validation_labels"], predictions["validation_probabilities"]
    )
    tempered = calibration.tempered(predictions["test_probabilities"], temperature)
    return {"temperature": temperature, **quality(predictions["test_labels"], tempered)}


def long_table(counts: np.ndarray, names: list[str]) -> pd.DataFrame:
    """A confusion matrix as a long table.

    Args:
        counts: Rows are labels, columns predicted classes, shape (classes, classes).
        names: Names of the classes.

    Returns:
        A row per cell, label by label: label, predicted (names), count (images), share (of the
        label's images).
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    label, predicted = np.divmod(np.arange(counts.size), len(names))
    named = np.array(names)
    return pd.DataFrame(
        {
            "label": named[label],
            "predicted": named[predicted],
            "count": counts.ravel(),
            "share": shares.ravel(),
        }
    )


def report(
    title: str,
    names: list[str],
    scores: Mapping[str, float],
    labels: np.ndarray,
    predicted: np.ndarray,
) -> str:
    """What a person wants to see at once: the result, the first ten test images, the most confused pairs.

    Args:
        title: Of the dataset.
        names: Names of the classes.
        scores: accuracy, accuracy_low, accuracy_high, loss, ece, ece_if_perfect, errors of the test
            split.
        labels: Shape (n,), whole numbers in [0, classes).
        predicted: The same.

    Returns:
        Some lines of text.
    """
    width = max(map(len, (*names, "predicted")))
    lines = [
        f"{title}: {len(labels) - scores['errors']:,} of {len(labels):,} test images right, "
        f"accuracy {scores['accuracy']:.4f} (95 % interval {scores['accuracy_low']:.4f} to "
        f"{scores['accuracy_high']:.4f}), loss {scores['loss']:.4f}",
        f"calibration error {scores['ece']:.4f}, by chance {scores['ece_if_perfect']:.4f}",
        "first ten:",
        f"  {'label':{width}}  {'predicted':{width}}",
    ]
    for label, guess in zip(labels[:10], predicted[:10], strict=True):
        lines.append(
            f"  {names[label]:{width}}  {names[guess]:{width}}  {'' if label == guess else 'wrong'}".rstrip()
        )
    pairs = metrics.confused_pairs(metrics.confusion(labels, predicted, len(names)))[:5]
    lines += [
        "most confused:",
        *(f"  {count:4} times {names[i]} taken for {names[j]}" for i, j, count in pairs),
    ]
    return "\n".join(lines)


def main() -> None:
    params = read_params().evaluate
    dataset = read_json(DATASET)
    names = dataset["classes"]
    predictions = read_predictions(PREDICTIONS, dataset)
    labels, probabilities = predictions["test_labels"], predictions["test_probabilities"]
    predicted = probabilities.argmax(axis=1)
    scores = summary(labels, probabilities)
    low, high = metrics.accuracy_interval(len(labels) - int(scores["errors"]), len(labels))
    scores |= {"accuracy_low": low, "accuracy_high": high, "test_examples": len(labels)}
    scores |= {name: int(predictions[name]) for name in ("parameters", "multiply_adds")}
    parts = {}
    if params.temperature:
        parts["tempered"] = with_temperature(predictions)
    held_out, of_held_out = (
        predictions["validation_labels"],
        predictions["validation_probabilities"],
    )
    if len(held_out):
        parts["validation"] = summary(held_out, of_held_out)
    recalls = metrics.per_class(held_out, of_held_out.argmax(axis=1), names)
    write_csv(VALIDATION_CLASSES, recalls if len(held_out) else recalls[:0])
    write_csv(CONFUSION, long_table(metrics.confusion(labels, predicted, len(names)), names))
    write_csv(CLASSES, metrics.per_class(labels, predicted, names))
    write_csv(CALIBRATION, calibration.reliability(labels, probabilities))
    write_json(METRICS, {**scores, **parts})  # last: where it stands, the rest does
    print(report(dataset["title"], names, scores, labels, predicted))


if __name__ == "__main__":
    run(main)
