"""List the misclassified test images and draw examples."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.lib.files import (
    check_arrays,
    read_array,
    read_json,
    read_predictions,
    write_csv,
    write_figure,
)
from stages.lib.params import read_params
from stages.lib.results import figures, metrics
from stages.lib.stage import run

RAW = Path("data/raw")
PREDICTIONS = Path("data/predictions.npz")
ERRORS = Path("reports/errors.csv")
FIGURE = Path("reports/figures/errors.png")
CONFIDENT_FIGURE = Path("reports/figures/errors_confident.png")
PAIRS_FIGURE = Path("reports/figures/errors_by_pair.png")


def errors(labels: np.ndarray, probabilities: np.ndarray, names: list[str]) -> pd.DataFrame:
    """List the misclassified images, most confident first.

    Args:
        labels: Shape (n,), integers in [0, classes).
        probabilities: Shape (n, classes), rows sum to 1.
        names: Names of the classes.

    Returns:
        A row per image: index (into the split), label, predicted, label_name, predicted_name,
        confidence (probability of the predicted class), margin (confidence - second highest
        probability), label_probability, label_rank (2 if the label is the runner-up),
        label_quality (low values indicate label errors, see `metrics.label_quality`).
    """
    predicted = probabilities.argmax(axis=1)
    index = np.flatnonzero(predicted != labels)
    label, guess, rows = labels[index], predicted[index], probabilities[index]
    confidence = rows.max(axis=1)
    table = pd.DataFrame(
        {
            "index": index,
            "label": label,
            "predicted": guess,
            "label_name": [names[i] for i in label],
            "predicted_name": [names[i] for i in guess],
            "confidence": confidence,
            "margin": confidence - np.sort(rows, axis=1)[:, -2],
            "label_probability": rows[np.arange(len(index)), label],
            "label_rank": metrics.ranks(label, rows),
            "label_quality": metrics.label_quality(label, rows),
        }
    )
    return table.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def by_pair(table: pd.DataFrame) -> pd.DataFrame:
    """Select the most confident error of each pair of classes, most confused pair first.

    Args:
        table: As returned by `errors`.
    """
    pair = ["label", "predicted"]
    size = table.groupby(pair)["index"].transform("size")
    return table.loc[size.sort_values(ascending=False, kind="stable").index].drop_duplicates(pair)


def draw(title: str, table: pd.DataFrame) -> Figure:
    """Draw test images with label, predicted class and confidence.

    Args:
        title: Title of the figure.
        table: Rows as returned by `errors`.
    """
    dataset = read_json(RAW / "dataset.json")
    names = figures.drawable(dataset["classes"])
    return figures.errors(
        title,
        read_array(RAW / "test_images.npy")[table["index"]],
        [names[label] for label in table["label"]],
        [names[predicted] for predicted in table["predicted"]],
        table["confidence"].to_numpy(),
        levels=dataset["levels"],
        background=dataset["background"],
    )


def main() -> None:
    params = read_params().extract_errors
    dataset = read_json(RAW / "dataset.json")
    title, names = dataset["title"], dataset["classes"]
    check_arrays(RAW / "dataset.json", "test_images")
    predictions = read_predictions(PREDICTIONS, dataset)
    labels, probabilities = predictions["test_labels"], predictions["test_probabilities"]
    table = errors(labels, probabilities, names)
    drawn = table.sample(min(params.examples, len(table)), random_state=params.seed)
    confident, pairs = table.head(params.examples), by_pair(table).head(params.examples)
    sample_title = f"{title}: {len(drawn)} of {len(table):,} misclassified test images at random"
    confident_title = f"{title}: most confidently misclassified test images"
    pairs_title = f"{title}: one misclassified test image per confused pair of classes"

    write_csv(ERRORS, table)
    write_figure(FIGURE, draw(sample_title, drawn))
    write_figure(CONFIDENT_FIGURE, draw(confident_title, confident))
    write_figure(PAIRS_FIGURE, draw(pairs_title, pairs))
    print(f"misclassified test images: {len(table):,}, in {ERRORS}; examples in {FIGURE.parent}")


if __name__ == "__main__":
    run(main)
