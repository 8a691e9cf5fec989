"""Rank likely label errors of the training split by out-of-fold predictions."""

import argparse
import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.extract_errors import errors
from stages.lib.files import (
    check_arrays,
    read_array,
    read_json,
    write_csv,
    write_figure,
    write_json,
)
from stages.lib.models.kinds import KINDS
from stages.lib.models.runtime import read_model
from stages.lib.params import Params, read_params
from stages.lib.results import figures
from stages.lib.stage import StageError, run
from stages.normalize import write_split
from stages.predict import predict

RAW = Path("data/raw")
SCALING = Path("data/normalized/scaling.json")


def fold_numbers(count: int, folds: int, seed: int) -> np.ndarray:
    """Assign images to folds at random.

    Args:
        count: Number of images.
        folds: Number of folds.
        seed: Random seed.

    Returns:
        Fold of each image, shape (count,), in [0, folds). Sizes differ by at most one image.
    """
    return np.random.default_rng(seed).permutation(count) % folds


def predict_fold(
    params: Params,
    dataset: dict[str, Any],
    scaling: dict[str, Any],
    held: np.ndarray,
) -> np.ndarray:
    """Train on all images except a fold, and predict the fold.

    Args:
        params: Model and training parameters.
        dataset: The content of dataset.json.
        scaling: The content of scaling.json.
        held: Mask of the training images in the fold, shape (n,), bool.

    Returns:
        Probabilities for the fold, shape (images of the fold, classes), float32.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        arrays: dict[str, object] = {}
        for split, kept in {"train": ~held, "validation": held}.items():
            arrays |= write_split(
                folder, split, "train", kept, scaling["offset"], scaling["divisor"]
            )
        write_json(folder / "scaling.json", scaling | {"arrays": arrays})
        train, history = KINDS[params.model.kind], folder / "history.csv"
        path = folder / "model.onnx"
        path.write_bytes(train(params.model, params.train, dataset, folder, "validation", history))
        return predict(read_model(path), RAW / "train_images.npy", np.flatnonzero(held))


def out_of_fold(
    params: Params,
    dataset: dict[str, Any],
    scaling: dict[str, Any],
    folds: int,
) -> np.ndarray:
    """Predict each training image with a model that was not trained on it.

    Args:
        params: Model and training parameters; `train.seed` also assigns the folds.
        dataset: The content of dataset.json.
        scaling: The content of scaling.json.
        folds: Number of folds.

    Returns:
        Out-of-fold probabilities, shape (n, classes), float32.
    """
    count = dataset["arrays"]["train_labels"]["shape"][0]
    numbers = fold_numbers(count, folds, params.train.seed)
    predicted = np.empty((count, len(dataset["classes"])), np.float32)
    for fold in range(folds):
        print(f"fold {fold + 1} of {folds}", flush=True)
        held = numbers == fold
        predicted[held] = predict_fold(params, dataset, scaling, held)
        gc.collect()  # reference cycles keep the network and its images in memory
    return predicted


def check_data(params: Params, dataset: dict[str, Any], scaling: dict[str, Any]) -> None:
    """Check that the data is intact and matches the parameters."""
    expected = f"{params.dataset} and {params.normalize.method}"
    found = f"{dataset['name']} and {scaling['method']}"
    if found != expected:
        raise StageError(f"data: expected {expected}, found {found}; run dvc repro")
    check_arrays(RAW / "dataset.json", "train_images", "train_labels")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.label_errors", description=__doc__)
    parser.add_argument("--folds", type=int, default=5, help="cross-validation folds (5)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="output folder (reports)")
    args = parser.parse_args()
    params, dataset, scaling = read_params(), read_json(RAW / "dataset.json"), read_json(SCALING)
    check_data(params, dataset, scaling)
    raw, labels = (read_array(RAW / f"train_{kind}.npy") for kind in ("images", "labels"))
    if not 2 <= args.folds <= len(labels):
        raise StageError(f"--folds: expected 2 to {len(labels):,}, found {args.folds}")
    predicted = out_of_fold(params, dataset, scaling, args.folds)
    table = errors(labels, predicted, dataset["classes"])
    table = table.sort_values("label_quality", kind="stable")
    shown, names = table.head(params.extract_errors.examples), figures.drawable(dataset["classes"])
    figure = figures.errors(
        f"{dataset['title']}: likely label errors of the training split",
        raw[shown["index"]],
        [names[label] for label in shown["label"]],
        [names[label] for label in shown["predicted"]],
        shown["confidence"].to_numpy(),
        levels=dataset["levels"],
        background=dataset["background"],
    )
    write_csv(args.out / "train_label_errors.csv", table)
    write_figure(args.out / "train_label_errors.png", figure)
    print(f"{args.folds}-fold cross-validation: accuracy {1 - len(table) / len(labels):.4f}")
    print(f"{len(table):,} misclassified training images, likely label errors first, in {args.out}")


if __name__ == "__main__":
    run(main)
