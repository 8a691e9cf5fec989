"""Lists the wrongly classified test images and draws some of them."""

from stages.lib.stage import run  # isort: skip  # first, see there

from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib import figures
from stages.lib.files import check_arrays, read_array, read_json, read_predictions, write_csv, write_figure
from stages.lib.params import read_params

RAW = Path("data/raw")
PREDICTIONS = Path("data/predictions.npz")
ERRORS = Path("reports/errors.csv")
FIGURE = Path("reports/figures/errors.png")


def errors(labels: np.ndarray, probabilities: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Lists the images whose most probable class is not the label.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.
        names: Names of the classes.

    Returns:
        A row per wrong image, most confident first: index (into the test split), label, predicted, label_name,
        predicted_name, confidence (probability of the predicted class), label_probability.
    """
    predicted = probabilities.argmax(axis=1)
    index = np.flatnonzero(predicted != labels)
    label, guess = labels[index], predicted[index]
    table = pd.DataFrame(
        {
            "index": index,
            "label": label,
            "predicted": guess,
            "label_name": [names[i] for i in label],
            "predicted_name": [names[i] for i in guess],
            "confidence": probabilities[index, guess],
            "label_probability": probabilities[index, label],
        }
    )
    return table.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def main() -> None:
    params = read_params().extract_errors
    dataset = read_json(RAW / "dataset.json")
    check_arrays(RAW / "dataset.json", "test_images")
    predictions = read_predictions(PREDICTIONS, dataset)
    table = errors(predictions["test_labels"], predictions["test_probabilities"], dataset["classes"])
    drawn = table.sample(min(params.examples, len(table)), random_state=params.seed)
    images = read_array(RAW / "test_images.npy")[drawn["index"]]
    title = f"{dataset['title']}: {len(drawn)} of {len(table):,} wrong test images, drawn at random"
    figure = figures.errors(
        title, images, [*drawn["label_name"]], [*drawn["predicted_name"]], drawn["confidence"].to_numpy()
    )
    write_csv(ERRORS, table)
    write_figure(FIGURE, figure)
    print(f"{len(table):,} wrong test images in {ERRORS}, {len(drawn)} of them in {FIGURE}")


if __name__ == "__main__":
    run(main)
