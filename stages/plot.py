"""Draw training images, learning curves and the results of the stage evaluate."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.lib.files import check_arrays, read_array, read_json, write_csv, write_figure
from stages.lib.params import read_params
from stages.lib.results import figures
from stages.lib.stage import StageError, run

RAW = Path("data/raw")
HISTORY = Path("data/history.csv")
METRICS = Path("reports/metrics.json")
CONFUSION = Path("reports/confusion.csv")
CLASSES = Path("reports/classes.csv")
CALIBRATION = Path("reports/calibration.csv")
EPOCHS = Path("reports/history.csv")
SAMPLES_FIGURE = Path("reports/figures/samples.png")
HISTORY_FIGURE = Path("reports/figures/history.png")
CONFUSION_FIGURE = Path("reports/figures/confusion.png")
CLASSES_FIGURE = Path("reports/figures/classes.png")
PAIRS_FIGURE = Path("reports/figures/pairs.png")
CALIBRATION_FIGURE = Path("reports/figures/calibration.png")


def draw_samples(title: str, raw: Path, count: int, seed: int) -> Figure:
    """Draw randomly chosen training images with the names of their classes.

    Args:
        title: Title of the figure.
        raw: Folder of the published arrays.
        count: Maximum number of images.
        seed: Random seed.
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


def read_table(path: Path, names: list[str]) -> pd.DataFrame:
    """Read a table of the stage evaluate with class names in the first column.

    Args:
        path: The CSV file.
        names: Names of the classes of the dataset.

    Returns:
        The table. Class names are strings ("1", "NA") that the fonts can draw; other empty cells
        are NaN.

    Raises:
        StageError: The classes in the table are not those of the dataset.
    """
    text = ("class", "label", "predicted")
    table = pd.read_csv(
        path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""]
    ).fillna(dict.fromkeys(text, ""))
    if [*table.iloc[:, 0].unique()] != names:
        raise StageError(f"{path}: the classes are not those of {RAW}; run dvc repro")
    drawn = dict(zip(names, figures.drawable(names), strict=True))
    for column in {*text} & {*table}:
        table[column] = table[column].map(drawn)
    return table


def most_confused(confusion: pd.DataFrame, count: int) -> list[tuple[str, str, int]]:
    """Select the most confused pairs of classes.

    Args:
        confusion: Columns label, predicted (names) and count (images); a row per pair.
        count: Maximum number of pairs.

    Returns:
        Label, predicted class and number of images, most images first.
    """
    errors = confusion[(confusion["label"] != confusion["predicted"]) & (confusion["count"] > 0)]
    pairs = errors.nlargest(count, "count")[["label", "predicted", "count"]]
    return [*pairs.itertuples(index=False, name=None)]


def main() -> None:
    params = read_params().plot
    dataset = read_json(RAW / "dataset.json")
    title, names = dataset["title"], figures.drawable(dataset["classes"])
    check_arrays(RAW / "dataset.json", "train_images", "train_labels")
    epochs, bins = pd.read_csv(HISTORY), pd.read_csv(CALIBRATION)
    classes, confusion = (read_table(path, dataset["classes"]) for path in (CLASSES, CONFUSION))
    counts = confusion["count"].to_numpy().reshape(len(names), len(names))
    held_out = "validation" if "validation" in read_json(METRICS) else "test"
    figure = draw_samples(f"{title}: training images", RAW, params.samples, params.seed)

    write_csv(EPOCHS, epochs)
    write_figure(SAMPLES_FIGURE, figure)
    figure = figures.history(f"{title}: learning curves", epochs, held_out)
    write_figure(HISTORY_FIGURE, figure)
    figure = figures.confusion(f"{title}: confusion matrix on test", counts, names)
    write_figure(CONFUSION_FIGURE, figure)
    figure = figures.classes(f"{title}: recall, precision and F1 score on test", classes)
    write_figure(CLASSES_FIGURE, figure)
    confused = most_confused(confusion, params.pairs)
    write_figure(PAIRS_FIGURE, figures.pairs(f"{title}: most confused classes on test", confused))
    figure = figures.calibration(f"{title}: calibration on test", bins)
    write_figure(CALIBRATION_FIGURE, figure)
    print(f"figures in {SAMPLES_FIGURE.parent}")


if __name__ == "__main__":
    run(main)
