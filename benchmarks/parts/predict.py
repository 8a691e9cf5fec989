"""The predict stage as a whole process, against Keras."""

import sys
from pathlib import Path

import numpy as np

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, mean_of, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import call, copy_project

OURS, KERAS = "ours: predict stage", "Keras, the same weights"


def largest_difference(ours: Path, theirs: Path) -> float:
    """Return the largest difference between probabilities in two files, for the second's splits."""
    with np.load(ours, allow_pickle=False) as a, np.load(theirs, allow_pickle=False) as b:
        return max(float(np.abs(a[name] - b[name]).max()) for name in b.files)


def measure(settings: Settings) -> Part:
    """Run the part: imports, validation of the model file, 16,000 images of MNIST, and saving."""
    folder = copy_project(settings.scratch / "predict", {"dataset": "mnist", "train.epochs": 1})
    call("dvc", "repro", "train", cwd=folder)
    probabilities = settings.scratch / "keras.npz"
    baseline: list[str | Path] = [sys.executable, "-m", "benchmarks.baselines.keras_predict"]
    runs = in_turn(
        [
            Command(OURS, [sys.executable, "-m", "stages.predict"], folder),
            Command(KERAS, [*baseline, probabilities], folder),
        ],
        settings.rounds,
    )
    peaks = {name: middle(runs, name, "peak") / 1e6 for name in runs}
    peak = mean_of(runs, OURS, "peak", 1e6)
    difference = largest_difference(folder / "data/predictions.npz", probabilities)
    return Part(
        "Predict: whole process, 6,000 validation and 10,000 test images of MNIST; "
        f"largest difference of two probabilities {difference:.1e}",
        ["", "s", "of ours", "peak, MB"],
        [
            [
                name,
                f"{middle(runs, name):.2f}",
                f"{ratio(runs, name, OURS).value:.2f}",
                f"{peaks[name]:.0f}",
            ]
            for name in runs
        ],
        [
            Check("predict, whole process", mean_of(runs, OURS), 0.8, at_least=False, unit=" s"),
            Check("predict, peak memory", peak, 250, at_least=False, unit=" MB"),
            Check("largest difference from Keras", difference, 1e-5, at_least=False, unit=""),
        ],
        [(name, middle(runs, name)) for name in runs],
        "seconds",
        {**runs, "largest_difference": difference},
    )
