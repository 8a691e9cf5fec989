"""Accuracy on photos and drawings derived from MNIST's test split."""

import numpy as np

from benchmarks.baselines import photos
from benchmarks.report import Check, Part
from benchmarks.settings import Settings
from benchmarks.workspace import call, copy_project, environment

LOSS = 0.03  # maximum loss of accuracy


def measure(settings: Settings) -> Part:
    """Run the part: train the tutorial's model, and classify image files of each variant."""
    count = 20 if settings.quick else 1000
    project = copy_project(
        settings.scratch / "photos", {"dataset": "mnist", "train.epochs": settings.epochs}
    )
    call("dvc", "repro", "train", cwd=project)
    images, labels = (
        np.load(project / f"data/raw/test_{kind}.npy") for kind in ("images", "labels")
    )
    files = settings.scratch / "photos-files"
    found = photos.accuracies(project, files, images[:count], labels[:count], environment())
    published = found["unchanged"]
    return Part(
        f"Photos and drawings: accuracy on the first {count:,} test images of MNIST",
        ["", "accuracy"],
        [[name, f"{accuracy:.4f}"] for name, accuracy in found.items()],
        [
            Check(f"{name}: loss of accuracy", published - accuracy, LOSS, at_least=False, unit="")
            for name, accuracy in found.items()
        ],
        [*found.items()],
        "accuracy",
        found,
    )
