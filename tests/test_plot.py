"""The stage plot, on a synthetic history and the tables of the stage evaluate."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from stages import evaluate, fetch, plot
from stages.lib.files import write_csv
from stages.lib.results import figures, metrics
from stages.lib.sources.fetching import digest
from stages.lib.stage import StageError
from tests.helpers import (
    CLASSES,
    HEIGHT,
    ROOT,
    WIDTH,
    Edit,
    idx,
    tiny_arrays,
    tiny_entry,
    write_entry,
)

FIGURES = [
    "calibration.png",
    "classes.png",
    "confusion.png",
    "history.png",
    "pairs.png",
    "samples.png",
]


@pytest.fixture
def predicted(project: Path) -> Path:
    """The working directory, with all that the stage reads."""
    fetch.main()
    save(validation=4, wrong=[0, 1, 2, 3])
    return project


def save(validation: int, wrong: list[int]) -> None:
    """Save predictions with the given errors, evaluate them, and save a history."""
    labels = tiny_arrays()["test_labels"]
    predicted = labels.copy()
    predicted[wrong] = (labels[wrong] + 1) % 3
    save_predictions(labels, predicted, validation)


def save_predictions(labels: np.ndarray, predicted: np.ndarray, validation: int) -> None:
    """Save predictions, whose first test images also validate, a history and the evaluation."""
    probabilities = np.eye(int(labels.max()) + 1, dtype=np.float32)[predicted]
    np.savez(
        "data/predictions.npz",
        parameters=np.array(275),
        multiply_adds=np.array(264),
        validation_labels=labels[:validation],
        validation_probabilities=probabilities[:validation],
        test_labels=labels,
        test_probabilities=probabilities,
    )
    Path("data/history.csv").write_text(
        "epoch,loss,accuracy,val_loss,val_accuracy\n"
        "1,0.900000,0.500000,1.000000,0.400000\n2,0.500000,0.7,0.8,0.6\n"
    )
    evaluate.main()


def draw_figures() -> dict[str, bytes]:
    plot.main()
    return {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}


def texts(figure: Figure) -> list[str]:
    return [
        text.get_text()
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_text()
    ]


def test_outputs_are_complete_and_reproducible(predicted: Path) -> None:
    first = draw_figures()
    assert sorted(first) == FIGURES
    assert all(content.startswith(b"\x89PNG") for content in first.values())
    assert len({*first.values()}) == 6
    pd.testing.assert_frame_equal(
        pd.read_csv("reports/history.csv"), pd.read_csv("data/history.csv")
    )
    assert draw_figures() == first


def test_parameters_and_inputs_change_own_figures_only(predicted: Path, edit: Edit) -> None:
    before = draw_figures()

    def changed() -> list[str]:
        nonlocal before
        earlier, before = before, draw_figures()
        assert sorted(before) == FIGURES
        return [name for name in FIGURES if earlier[name] != before[name]]

    edit("plot.seed", 1)
    assert changed() == ["samples.png"]
    edit("plot.samples", 3)
    assert changed() == ["samples.png"]
    edit("plot.pairs", 1)
    assert changed() == ["pairs.png"]
    save(validation=4, wrong=[5, 6])
    assert changed() == ["calibration.png", "classes.png", "confusion.png", "pairs.png"]
    save(validation=0, wrong=[5, 6])  # the legend then refers to the test split
    assert changed() == ["history.png"]
    save(validation=0, wrong=[])
    assert changed() == ["calibration.png", "classes.png", "confusion.png", "pairs.png"]


def test_samples_are_training_images_with_their_names(predicted: Path) -> None:
    figure = plot.draw_samples("Tiny", Path("data/raw"), count=9, seed=0)
    published = {
        (image.tobytes(), CLASSES[label])
        for image, label in zip(
            tiny_arrays()["train_images"], tiny_arrays()["train_labels"], strict=True
        )
    }
    shown = [
        (np.asarray(axes.images[0].get_array()).astype(np.uint8).tobytes(), axes.get_title())
        for axes in figure.axes
    ]
    assert len({*shown}) == 9
    assert {*shown} <= published


def test_all_images_are_drawn_if_fewer_than_samples(predicted: Path) -> None:
    for name, array in tiny_arrays().items():
        np.save(f"data/raw/{name}.npy", array[:5])
    figure = plot.draw_samples("Tiny", Path("data/raw"), count=100, seed=0)
    assert sum(len(axes.images) for axes in figure.axes) == 5
    assert "Tiny" in texts(figure)


@pytest.mark.parametrize("path", ["data/raw/train_images.npy", "data/raw/train_labels.npy"])
def test_modified_inputs_are_rejected(predicted: Path, path: str) -> None:
    """Nothing is drawn."""
    content = bytearray((predicted / path).read_bytes())
    content[200] ^= 1
    (predicted / path).write_bytes(content)
    with pytest.raises(
        StageError, match=rf"^{path}: expected .*; regenerate the outputs with dvc repro --force$"
    ):
        plot.main()
    assert not (predicted / "reports/figures").exists()


@pytest.mark.parametrize("path", ["reports/classes.csv", "reports/confusion.csv"])
def test_tables_of_another_dataset_are_rejected(predicted: Path, path: str) -> None:
    """Nothing is drawn."""
    table = predicted / path
    table.write_text(table.read_text().replace("blot", "dot"))
    with pytest.raises(
        StageError, match=rf"^{path}: the classes are not those of data/raw; run dvc repro$"
    ):
        plot.main()
    assert not (predicted / "reports/figures").exists()


def test_names_like_numbers_or_nan_stay_text(tmp_path: Path) -> None:
    names = ["1", "NA", "", "1.0"]
    labels = np.array([0, 1, 2])
    write_csv(tmp_path / "classes.csv", metrics.per_class(labels, labels, names))
    table = plot.read_table(tmp_path / "classes.csv", names)
    assert [*table["class"]] == names
    np.testing.assert_array_equal(table["recall"], [1, 1, 1, np.nan])


@pytest.mark.parametrize("seed", range(3))
def test_most_confused_pairs_come_first(
    seed: int,
) -> None:
    """Ties are in the order of the classes."""
    counts = np.random.default_rng(seed).integers(0, 4, (5, 5))
    table = evaluate.confusion_table(counts, [*"abcde"])
    pairs = [(i, j, n) for i, j, n, _ in table.itertuples(index=False) if i != j and n]
    expected = sorted(pairs, key=lambda pair: -pair[2])
    assert plot.most_confused(table, 100) == expected
    assert plot.most_confused(table, 3) == expected[:3]


def test_perfect_model_has_no_confused_pairs() -> None:
    assert plot.most_confused(evaluate.confusion_table(np.diag([3, 4]), ["a", "b"]), 10) == []


def test_class_without_images_is_drawn_without_dots() -> None:
    labels = np.array([0, 0, 2])
    table = metrics.per_class(labels, labels, ["a", "b", "c"])
    figure = figures.classes("Classes", table)
    figure.draw_without_rendering()
    assert {"a", "b", "c"} <= {*texts(figure)}


def test_256_classes_take_seconds_and_little_memory(project: Path) -> None:
    rng, classes = np.random.default_rng(0), 256
    labels = np.tile(np.arange(classes), 10).astype(np.uint8)
    images = rng.integers(0, 256, (len(labels), HEIGHT, WIDTH), np.uint8)
    arrays = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images, "test_labels": labels}
    entry = tiny_entry() | {"classes": [f"class no. {number}" for number in range(classes)]}
    entry["images"] = {"train": len(labels), "test": len(labels)}
    entry["sha256"] = {name: digest(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        (project / "tiny" / f"{name}.idx").write_bytes(idx(array))
    write_entry(project, "tiny", entry)
    fetch.main()
    save_predictions(labels, rng.permutation(labels), 0)

    # Not ru_maxrss: it survives exec, so that of a child is at least pytest's own memory.
    code = (
        "import re, time; from pathlib import Path; from stages import plot; plot.main();"
        "print(time.process_time(), re.findall(r'VmHWM:\\s*(\\d+) kB',"
        " Path('/proc/self/status').read_text())[0])"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True
    )
    seconds, peak = output.splitlines()[-1].split()
    assert float(seconds) < 20  # 7 on a slow machine; without limits, 100
    assert int(peak) < 500_000  # kB
    for path in Path("reports/figures").iterdir():
        height, width, _ = plt.imread(path).shape
        assert max(height, width) <= 3_000
