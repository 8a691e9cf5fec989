"""Draws the data, the training and the results."""

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
from stages.lib.results import calibration, figures, metrics
from stages.lib.stage import run

RAW = Path("data/raw")
HISTORY = Path("data/history.csv")
PREDICTIONS = Path("data/predictions.npz")
EPOCHS = Path("reports/history.csv")
SAMPLES_FIGURE = Path("reports/figures/samples.png")
HISTORY_FIGURE = Path("reports/figures/history.png")
CONFUSION_FIGURE = Path("reports/figures/confusion.png")
CLASSES_FIGURE = Path("reports/figures/classes.png")
PAIRS_FIGURE = Path("reports/figures/pairs.png")
CALIBRATION_FIGURE = Path("reports/figures/calibration.png")


def draw_samples(title: str, raw: Path, count: int, seed: int) -> Figure:
    """Draws training images at random, as published, with the names of their classes.

    Args:
        title: Above all.
        raw: The folder of the raw arrays.
        count: How many images, at most.
        seed: Which ones.

    Returns:
        The figure.
    """
    labels = np.load(raw / "train_labels.npy")
    dataset = read_json(raw / "dataset.json")
    names = figures.drawable(dataset["classes"])
    chosen = np.random.default_rng(seed).choice(len(labels), min(count, len(labels)), replace=False)
    return figures.samples(
        title,
        read_array(raw / "train_images.npy")[chosen],
        [names[i] for i in labels[chosen]],
        levels=dataset["levels"],
        background=dataset["background"],
    )


def main() -> None:
    params = read_params().plot
    dataset = read_json(RAW / "dataset.json")
    title, names = dataset["title"], figures.drawable(dataset["classes"])
    check_arrays(RAW / "dataset.json", "train_images", "train_labels")
    epochs, predictions = pd.read_csv(HISTORY), read_predictions(PREDICTIONS, dataset)
    labels, probabilities = predictions["test_labels"], predictions["test_probabilities"]
    predicted = probabilities.argmax(axis=1)
    counts = metrics.confusion(labels, predicted, len(names))
    confused = [
        (names[i], names[j], count)
        for i, j, count in metrics.confused_pairs(counts)[: params.pairs]
    ]
    held_out = "validation" if len(predictions["validation_labels"]) else "test"

    write_csv(EPOCHS, epochs)
    write_figure(
        SAMPLES_FIGURE, draw_samples(f"{title}: training images", RAW, params.samples, params.seed)
    )
    write_figure(HISTORY_FIGURE, figures.history(f"{title}: training", epochs, held_out))
    write_figure(
        CONFUSION_FIGURE,
        figures.confusion(f"{title}: labels and predictions on test", counts, names),
    )
    write_figure(
        CLASSES_FIGURE,
        figures.classes(f"{title}: classes on test", metrics.per_class(labels, predicted, names)),
    )
    write_figure(PAIRS_FIGURE, figures.pairs(f"{title}: most confused classes on test", confused))
    write_figure(
        CALIBRATION_FIGURE,
        figures.calibration(
            f"{title}: confidence on test", calibration.reliability(labels, probabilities)
        ),
    )
    print(f"figures in {SAMPLES_FIGURE.parent}")


if __name__ == "__main__":
    run(main)
