"""Predicts the validation and the test split."""

from stages.lib.stage import run  # isort: skip  # first, see there

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.lib.files import check_arrays, read_chunks, read_json, replacing
from stages.lib.params import read_params

WEIGHTS = Path("data/model.weights.h5")
NORMALIZED = Path("data/normalized")
PREDICTIONS = Path("data/predictions.npz")


def probabilities(
    model: Callable[[np.ndarray], np.ndarray], path: Path, classes: int
) -> np.ndarray:
    """Probabilities of a file of images.

    Args:
        model: From images to probabilities.
        path: Images, shape (n, height, width), float32; read some at a time.
        classes: Number of classes.

    Returns:
        Rows that add up to 1, shape (n, classes), float32.
    """
    none = np.empty((0, classes), np.float32)
    return np.concatenate([none, *(model(chunk) for chunk in read_chunks(path, 1024))])


def main() -> None:
    params = read_params().model
    if params.kind == "pca_knn":  # needs no TensorFlow, which takes seconds to import
        from stages.lib.models.pca_knn import restore
    else:
        from stages.lib.models.networks import restore
    splits = ("validation", "test")
    check_arrays(
        NORMALIZED / "scaling.json",
        *(f"{split}_{kind}" for split in splits for kind in ("images", "labels")),
    )
    scaling = read_json(NORMALIZED / "scaling.json")
    model, parameters, multiply_adds = restore(params, scaling, WEIGHTS)
    arrays = {"parameters": np.array(parameters), "multiply_adds": np.array(multiply_adds)}
    for split in splits:
        arrays[f"{split}_labels"] = np.load(NORMALIZED / f"{split}_labels.npy")
        arrays[f"{split}_probabilities"] = probabilities(
            model, NORMALIZED / f"{split}_images.npy", int(scaling["classes"])
        )
    with replacing(PREDICTIONS) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
    print(
        f"{len(arrays['validation_labels']):,} validation and {len(arrays['test_labels']):,} test images predicted"
    )


if __name__ == "__main__":
    run(main)
