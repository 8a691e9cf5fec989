"""Our train stage's `fit`, on data/normalized of the working directory, without its validation split."""

import argparse
import io
import json
import time

import numpy as np

from stages.lib.files import read_json
from stages.lib.models import training
from stages.lib.models.networks import build, keras
from stages.lib.params import read_params
from stages.train import NORMALIZED


class Log(training.EpochLog):
    """The stage's callback, which also notes when each epoch ends, its validation included."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        super().on_epoch_end(epoch, logs)
        self.ends.append(time.perf_counter())


def main() -> None:
    """Fits once, and says how long it took and how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    params = read_params()
    images, labels = (
        training.tensor(NORMALIZED / f"train_{kind}.npy") for kind in ("images", "labels")
    )
    test = tuple(training.tensor(NORMALIZED / f"test_{kind}.npy") for kind in ("images", "labels"))
    keras.utils.set_random_seed(seed)
    model = build(params.model, read_json(NORMALIZED / "scaling.json"))
    log = Log(params.train.epochs, io.StringIO())
    start = time.perf_counter()
    training.fit(model, params.train, (images, labels), test, log)
    seconds = time.perf_counter() - start
    right = model.predict_on_batch(test[0]).argmax(axis=1) == test[1].numpy()
    epochs = np.diff([start, *log.ends]).tolist()
    print(json.dumps({"seconds": seconds, "epochs": epochs, "accuracy": float(right.mean())}))


if __name__ == "__main__":
    main()
