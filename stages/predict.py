"""Predicts the validation and the test split."""

from stages.lib.stage import run  # isort: skip  # first, see there

from pathlib import Path

import numpy as np

from stages.lib.files import check_arrays, read_array, read_chunks, read_json, replacing
from stages.lib.models import build, keras, load
from stages.lib.params import read_params

WEIGHTS = Path("data/model.weights.h5")
NORMALIZED = Path("data/normalized")
PREDICTIONS = Path("data/predictions.npz")


def probabilities(model: keras.Model, path: Path) -> np.ndarray:
    """Probabilities of a file of images.

    Args:
        model: From images to probabilities.
        path: Images, shape (n, height, width), float32; read some at a time.

    Returns:
        Rows that add up to 1, shape (n, classes), float32.
    """
    none = np.empty((0, model.output_shape[-1]), np.float32)
    return np.concatenate([none, *(model.predict_on_batch(chunk) for chunk in read_chunks(path))])


def main() -> None:
    params = read_params()
    splits = ("validation", "test")
    check_arrays(NORMALIZED / "scaling.json", *(f"{split}_{kind}" for split in splits for kind in ("images", "labels")))
    image = read_array(NORMALIZED / "test_images.npy").shape[1:]
    model = build(params.model, image, int(read_json(NORMALIZED / "scaling.json")["classes"]))
    load(model, WEIGHTS)
    arrays = {"parameters": np.array(model.count_params())}
    for split in splits:
        arrays[f"{split}_labels"] = np.load(NORMALIZED / f"{split}_labels.npy")
        arrays[f"{split}_probabilities"] = probabilities(model, NORMALIZED / f"{split}_images.npy")
    with replacing(PREDICTIONS) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
    print(f"{len(arrays['validation_labels']):,} validation and {len(arrays['test_labels']):,} test images predicted")


if __name__ == "__main__":
    run(main)
