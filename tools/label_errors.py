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
from stages.lib.params import Params, read_params
from stages.lib.results import figures
from stages.lib.stage import StageError, run
from stages.normalize import scale
from stages.predict import probabilities

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
    scaling: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    held: np.ndarray,
) -> np.ndarray:
    """Trains on what is not held out, and predicts what is.

    Args:
        params: Which model, and how it is trained.
        scaling: What normalize wrote into scaling.json.
        images: Shape (n, height, width), float32.
        labels: Shape (n,), uint8.
        held: True for each image held out, shape (n,), bool.

    Returns:
        Probabilities of the images held out, shape (held, classes), float32.
    """
    if params.model.kind == "pca_knn":
        from stages.lib.models.pca_knn import restore, train
    else:
        from stages.lib.models.networks import restore
        from stages.lib.models.training import train
    with TemporaryDirectory() as name:
        folder = Path(name)
        splits = {"train": ~held, "validation": held}
        arrays = {f"{split}_images": images[chosen] for split, chosen in splits.items()}
        arrays |= {f"{split}_labels": labels[chosen] for split, chosen in splits.items()}
        # What the model is built for is that of the pipeline; the arrays are those of the fold.
        fold = scaling | {"arrays": scaling["arrays"] | write_arrays(folder, arrays)}
        write_json(folder / "scaling.json", fold)
        weights = folder / "model.weights.h5"
        train(params.model, params.train, folder, "validation", weights, folder / "history.csv")
        model, _, _ = restore(params.model, fold, weights)
        return probabilities(model, folder / "validation_images.npy", scaling["classes"])


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
    images = scale(raw, scaling["offset"], scaling["divisor"])
    folds = fold_numbers(len(labels), args.folds, params.train.seed)
    predicted = np.empty((len(labels), scaling["classes"]), np.float32)
    for fold in range(args.folds):
        print(f"fold {fold + 1} of {args.folds}", flush=True)
        predicted[folds == fold] = predict_fold(params, scaling, images, labels, folds == fold)
    table = suspects(labels, predicted, dataset["classes"], params.extract_errors.suspects)
    shown = table.head(params.extract_errors.examples)
    title = f"{dataset['title']}: the {len(shown)} training labels that are contradicted most"
    sure = predicted[shown["index"], shown["suggested"]]
    figure = figures.errors(
        title, raw[shown["index"]], [*shown["label_name"]], [*shown["suggested_name"]], sure
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
