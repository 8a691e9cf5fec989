"""Lists the wrongly classified test images and the labels that may be wrong themselves, and draws some of them."""

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
from stages.lib.results import figures
from stages.lib.stage import run

RAW = Path("data/raw")
PREDICTIONS = Path("data/predictions.npz")
ERRORS = Path("reports/errors.csv")
SUSPECTS = Path("reports/suspects.csv")
FIGURE = Path("reports/figures/errors.png")
CONFIDENT_FIGURE = Path("reports/figures/errors_confident.png")
PAIRS_FIGURE = Path("reports/figures/errors_by_pair.png")


def errors(labels: np.ndarray, probabilities: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Lists the images whose most probable class is not the label.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.
        names: Names of the classes.

    Returns:
        A row per wrong image, most confident first: index (into the test split), label, predicted,
        label_name, predicted_name, confidence (probability of the predicted class), margin
        (confidence less the probability of the runner-up), label_probability, label_rank (2 where
        the label is the runner-up).
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
            "margin": probabilities[index, guess] - np.sort(probabilities[index], axis=1)[:, -2],
            "label_probability": probabilities[index, label],
            "label_rank": 1
            + (np.argsort(-probabilities[index], kind="stable") == label[:, None]).argmax(axis=1),
        }
    )
    return table.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def by_pair(table: pd.DataFrame) -> pd.DataFrame:
    """The most confident error of each pair of classes, the pair that is confused most often first.

    Args:
        table: As from `errors`.

    Returns:
        Some of its rows.
    """
    pair = ["label", "predicted"]
    often = table.groupby(pair)["index"].transform("size")
    return table.loc[often.sort_values(ascending=False, kind="stable").index].drop_duplicates(pair)


def suspects(
    labels: np.ndarray, probabilities: np.ndarray, names: list[str], count: int
) -> pd.DataFrame:
    """Lists the images whose label the model contradicts most.

    The probabilities must come from a model that was not trained on these images.

    Args:
        labels: Shape (n,), whole numbers in [0, classes).
        probabilities: Shape (n, classes), rows add up to 1.
        names: Names of the classes.
        count: How many to list, at most.

    Returns:
        A row per image, most suspect first: index, label, suggested, label_name, suggested_name,
        quality: half of 1 and of the label's probability less the highest other one, in [0, 1]
            (normalized margin: Northcutt et al. 2021,
        "Confident learning", JAIR 70).
    """
    index = np.arange(len(labels))
    others = probabilities.astype(np.float64)
    given = others[index, labels]
    others[index, labels] = -1
    quality = (given - others.max(axis=1) + 1) / 2
    chosen = np.argsort(quality, kind="stable")[:count]
    label, suggested = labels[chosen], others[chosen].argmax(axis=1)
    return pd.DataFrame(
        {
            "index": chosen,
            "label": label,
            "suggested": suggested,
            "label_name": [names[i] for i in label],
            "suggested_name": [names[i] for i in suggested],
            "quality": quality[chosen],
        }
    )


def draw(title: str, table: pd.DataFrame) -> Figure:
    """Draws test images.

    Args:
        title: Above all.
        table: Rows as from `errors`.

    Returns:
        The figure.
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
    sure, pairs = table.head(params.examples), by_pair(table).head(params.examples)

    write_csv(ERRORS, table)
    write_csv(SUSPECTS, suspects(labels, probabilities, names, params.suspects))
    write_figure(
        FIGURE,
        draw(f"{title}: {len(drawn)} of {len(table):,} wrong test images, drawn at random", drawn),
    )
    write_figure(
        CONFIDENT_FIGURE, draw(f"{title}: the {len(sure)} most confident wrong ones", sure)
    )
    write_figure(
        PAIRS_FIGURE, draw(f"{title}: one of each of the {len(pairs)} most confused pairs", pairs)
    )
    print(f"{len(table):,} wrong test images in {ERRORS}, some of them in {FIGURE.parent}")


if __name__ == "__main__":
    run(main)
