"""The fit of the train stage on data/normalized of the working directory, validated on test."""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stages.lib.files import read_json
from stages.lib.models import training
from stages.lib.models.networks import cnn, import_keras, mlp
from stages.lib.params import read_params
from stages.train import NORMALIZED, RAW


def main() -> None:
    """Fit once, and print times and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    params = read_params()
    images, labels = (
        training.tensor(NORMALIZED / f"train_{kind}.npy") for kind in ("images", "labels")
    )
    test = tuple(training.tensor(NORMALIZED / f"test_{kind}.npy") for kind in ("images", "labels"))
    keras = import_keras()
    keras.utils.set_random_seed(seed)
    dataset, scaling = read_json(RAW / "dataset.json"), read_json(NORMALIZED / "scaling.json")
    model = {"mlp": mlp, "cnn": cnn}[params.model.kind](params.model, dataset, scaling)
    ends: list[float] = []
    accuracies: list[float] = []

    def note(epoch: int, logs: dict[str, float]) -> None:
        ends.append(time.perf_counter())
        accuracies.append(logs["val_accuracy"])

    clock = keras.callbacks.LambdaCallback(on_epoch_end=note)
    of_stage = training.callbacks
    training.callbacks = lambda *args: [*of_stage(*args), clock]  # epochs include validation
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        training.fit(model, params.train, (images, labels), test, Path(folder) / "history.csv")
    seconds = time.perf_counter() - start
    result = {
        "seconds": seconds,
        "epochs": np.diff([start, *ends]).tolist(),
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
