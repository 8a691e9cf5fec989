"""Measures the predictions."""

from stages.lib.stage import run  # isort: skip  # first, see there

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib import metrics
from stages.lib.files import read_json, read_predictions, write_csv, write_json

DATASET = Path("data/raw/dataset.json")
PREDICTIONS = Path("data/predictions.npz")
METRICS = Path("reports/metrics.json")
CONFUSION = Path("reports/confusion.csv")
CLASSES = Path("reports/classes.csv")


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, loss and number of errors.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.

    Returns:
        accuracy, loss (nats), errors (images).
    """
    errors = int((probabilities.argmax(axis=1) != labels).sum())
    return {
        "accuracy": (len(labels) - errors) / len(labels),
        "loss": metrics.cross_entropy(labels, probabilities),
        "errors": errors,
    }


def long_table(counts: np.ndarray, names: list[str]) -> pd.DataFrame:
    """A confusion matrix as a long table.

    Args:
        counts: Rows are labels, columns predicted classes, shape (classes, classes).
        names: Names of the classes.

    Returns:
        A row per cell, label by label: label, predicted (names), count (images), share (of the label's images).
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    label, predicted = np.divmod(np.arange(counts.size), len(names))
    named = np.array(names)
    return pd.DataFrame(
        {"label": named[label], "predicted": named[predicted], "count": counts.ravel(), "share": shares.ravel()}
    )


def report(title: str, names: list[str], scores: Mapping[str, float], labels: np.ndarray, predicted: np.ndarray) -> str:
    """What a person wants to see at once: the result, the first ten test images, the most confused pairs.

    Args:
        title: Of the data set.
        names: Names of the classes.
        scores: accuracy, accuracy_low, accuracy_high, loss, errors of the test split.
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
        "first ten:",
        f"  {'label':{width}}  {'predicted':{width}}",
    ]
    for label, guess in zip(labels[:10], predicted[:10], strict=True):
        lines.append(f"  {names[label]:{width}}  {names[guess]:{width}}  {'' if label == guess else 'wrong'}".rstrip())
    pairs = metrics.confused_pairs(metrics.confusion(labels, predicted, len(names)))[:5]
    lines += ["most confused:", *(f"  {count:4} times {names[i]} taken for {names[j]}" for i, j, count in pairs)]
    return "\n".join(lines)


def main() -> None:
    dataset = read_json(DATASET)
    names = dataset["classes"]
    predictions = read_predictions(PREDICTIONS, dataset)
    labels, probabilities = predictions["test_labels"], predictions["test_probabilities"]
    predicted = probabilities.argmax(axis=1)
    scores = summary(labels, probabilities)
    low, high = metrics.accuracy_interval(len(labels) - int(scores["errors"]), len(labels))
    scores |= {"accuracy_low": low, "accuracy_high": high}
    scores |= {"test_examples": len(labels), "parameters": int(predictions["parameters"])}
    validation = {}
    if len(predictions["validation_labels"]):
        validation["validation"] = summary(predictions["validation_labels"], predictions["validation_probabilities"])
    write_csv(CONFUSION, long_table(metrics.confusion(labels, predicted, len(names)), names))
    write_csv(CLASSES, metrics.per_class(labels, predicted, names))
    write_json(METRICS, {**scores, **validation})  # last: where it stands, the rest does
    print(report(dataset["title"], names, scores, labels, predicted))


if __name__ == "__main__":
    run(main)
