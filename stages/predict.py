"""Predict the validation and test splits with the model file."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.files import check_arrays, read_array, read_json, replacing
from stages.lib.models.runtime import Model, read_model
from stages.lib.stage import StageError, run

MODEL = Path("data/model.onnx")
RAW = Path("data/raw")
NORMALIZED = Path("data/normalized")
PREDICTIONS = Path("data/predictions.npz")

ROWS = 4096  # images in memory at a time


def check_dataset(model: Model, dataset: Mapping[str, Any]) -> None:
    """Verify that the model was trained on this dataset.

    Args:
        model: The model.
        dataset: The content of dataset.json.

    Raises:
        StageError: The dataset name, classes or image shape differ.
    """
    image = dataset["arrays"]["test_images"]["shape"][1:]
    expected = {"dataset": dataset["name"], "classes": dataset["classes"], "image": image}
    found = {"dataset": model.dataset, "classes": [*model.classes], "image": [*model.image]}
    for name, value in expected.items():
        if found[name] != value:
            raise StageError(
                f"{MODEL}: {name}: expected {value}, as in data/raw/dataset.json, "
                f"found {found[name]}; run dvc repro to retrain the model"
            )


def predict(model: Model, path: Path, chosen: np.ndarray) -> np.ndarray:
    """Predict selected images of a file, chunk by chunk.

    Args:
        model: The model.
        path: Images as published, shape (n, height, width) or (n, height, width, 3), uint8.
        chosen: Indices of the images to predict, shape (m,), integers.

    Returns:
        Probabilities, shape (m, classes), float32, rows sum to 1.
    """
    probabilities = np.empty((len(chosen), len(model.classes)), np.float32)
    for start in range(0, len(chosen), ROWS):
        rows = slice(start, start + ROWS)
        # Remap the file for each chunk, because a map keeps every page read so far in memory.
        probabilities[rows] = model(read_array(path)[chosen[rows]])
    return probabilities


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an npz whose bytes depend on the arrays alone.

    The headers that `np.savez` writes differ between patch releases of Python.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getbuffer())


def main() -> None:
    dataset, model = read_json(RAW / "dataset.json"), read_model(MODEL)
    check_dataset(model, dataset)
    check_arrays(RAW / "dataset.json", *dataset["arrays"])
    check_arrays(NORMALIZED / "scaling.json", "held_out")
    splits = {
        "validation": ("train", np.load(NORMALIZED / "held_out.npy")),
        "test": ("test", np.arange(dataset["arrays"]["test_labels"]["shape"][0])),
    }
    arrays = {name: np.array(getattr(model, name)) for name in ("parameters", "multiply_adds")}
    for split, (published, chosen) in splits.items():
        arrays[f"{split}_labels"] = read_array(RAW / f"{published}_labels.npy")[chosen]
        arrays[f"{split}_probabilities"] = predict(model, RAW / f"{published}_images.npy", chosen)
    with replacing(PREDICTIONS) as partial:
        write_npz(partial, arrays)
    counts = (f"{len(arrays[f'{split}_labels']):,} {split}" for split in splits)
    print(f"predicted {' and '.join(counts)} images")


if __name__ == "__main__":
    run(main)
