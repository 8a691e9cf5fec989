"""Ranks the training images whose labels may be wrong, by models that were not trained on them (k-fold)."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.extract_errors import suspects
from stages.lib.files import (
    check_arrays,
    read_array,
    read_json,
    write_arrays,
    write_csv,
    write_figure,
    write_json,
)
from stages.lib.models.kinds import KINDS
from stages.lib.models.runtime import read_model
from stages.lib.params import Params, read_params
from stages.lib.results import figures
from stages.lib.stage import StageError, run
from stages.normalize import scale

RAW = Path("data/raw")
SCALING = Path("data/normalized/scaling.json")


def fold_numbers(count: int, folds: int, seed: int) -> np.ndarray:
    """Deals images into folds at random.

    Args:
        count: Number of images.
        folds: Number of folds.
        seed: Seed of the choice.

    Returns:
        The fold of each image, shape (count,), in [0, folds); folds differ by one image at most.
    """
    return np.random.default_rng(seed).permutation(count) % folds


def predict_fold(
    params: Params,
    dataset: dict[str, Any],
    scaling: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    held: np.ndarray,
) -> np.ndarray:
    """Train on the images that are not held out, and predict those that are.

    Args:
        params: The model and its training.
        dataset: The content of dataset.json.
        scaling: The content of scaling.json.
        images: Gray levels, shape (n, height, width), uint8.
        labels: Shape (n,), uint8.
        held: True for each image held out, shape (n,), bool.

    Returns:
        Probabilities of the images held out, shape (held, classes), float32.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        arrays: dict[str, np.ndarray] = {}
        for split, chosen in {"train": ~held, "validation": held}.items():
            scaled = scale(images[chosen], scaling["offset"], scaling["divisor"])
            arrays |= {f"{split}_images": scaled, f"{split}_labels": labels[chosen]}
        write_json(folder / "scaling.json", scaling | {"arrays": write_arrays(folder, arrays)})
        train, history = KINDS[params.model.kind], folder / "history.csv"
        path = folder / "model.onnx"
        path.write_bytes(train(params.model, params.train, dataset, folder, "validation", history))
        return read_model(path)(images[held])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.label_errors", description=__doc__)
    parser.add_argument(
        "--folds", type=int, default=5, help="models to train, each on all folds but one (5)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), help="where train_suspects.* goes (reports)"
    )
    args = parser.parse_args()
    params, dataset, scaling = read_params(), read_json(RAW / "dataset.json"), read_json(SCALING)
    found, expected = (
        (dataset["name"], scaling["method"]),
        (params.dataset, params.normalize.method),
    )
    if found != expected:
        raise StageError(
            f"data: expected {' and '.join(expected)}, found {' and '.join(found)}; dvc repro"
        )
    check_arrays(RAW / "dataset.json", "train_images", "train_labels")
    raw, labels = (read_array(RAW / f"train_{kind}.npy") for kind in ("images", "labels"))
    if not 2 <= args.folds <= len(labels):
        raise StageError(f"--folds: expected 2 to {len(labels):,}, found {args.folds}")
    folds = fold_numbers(len(labels), args.folds, params.train.seed)
    predicted = np.empty((len(labels), len(dataset["classes"])), np.float32)
    for fold in range(args.folds):
        print(f"fold {fold + 1} of {args.folds}", flush=True)
        predicted[folds == fold] = predict_fold(
            params, dataset, scaling, raw, labels, folds == fold
        )
    table = suspects(labels, predicted, dataset["classes"], params.extract_errors.suspects)
    shown = table.head(params.extract_errors.examples)
    title = f"{dataset['title']}: the {len(shown)} training labels that are contradicted most"
    sure = predicted[shown["index"], shown["suggested"]]
    names = figures.drawable(dataset["classes"])
    figure = figures.errors(
        title,
        raw[shown["index"]],
        [names[label] for label in shown["label"]],
        [names[suggested] for suggested in shown["suggested"]],
        sure,
        levels=dataset["levels"],
        background=dataset["background"],
    )
    write_csv(args.out / "train_suspects.csv", table)
    write_figure(args.out / "train_suspects.png", figure)
    accuracy = (predicted.argmax(axis=1) == labels).mean()
    print(f"accuracy of the {args.folds} models on what they had not seen: {accuracy:.4f}")
    print(
        f"{len(table)} training labels in {args.out}/train_suspects.csv, some of them in train_suspects.png"
    )


if __name__ == "__main__":
    run(main)
