"""Trains the model."""

from stages.lib.stage import run  # isort: skip  # first, see there

import time
from pathlib import Path

from stages.lib.files import check_arrays, read_json, replacing
from stages.lib.params import read_params

NORMALIZED = Path("data/normalized")
WEIGHTS = Path("data/model.weights.h5")
HISTORY = Path("data/history.csv")


def main() -> None:
    params = read_params()
    if params.model.kind == "pca_knn":  # needs no TensorFlow, which takes seconds to import
        from stages.lib.models.pca_knn import train
    else:
        from stages.lib.models.training import train
    scaling = read_json(NORMALIZED / "scaling.json")
    # The tutorial's protocol holds nothing out and draws its curves on the test split.
    held_out = "validation" if scaling["arrays"]["validation_labels"]["shape"][0] else "test"
    names = (f"{split}_{kind}" for split in ("train", held_out) for kind in ("images", "labels"))
    check_arrays(NORMALIZED / "scaling.json", *names)
    start = time.perf_counter()
    with replacing(HISTORY) as history, replacing(WEIGHTS) as weights:
        train(params.model, params.train, NORMALIZED, held_out, weights, history)
    print(f"fit {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
