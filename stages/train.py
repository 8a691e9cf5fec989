"""Trains the model."""

from stages.lib.stage import StageError, run  # isort: skip  # first, see there

import math
import time
from pathlib import Path
from typing import IO

import numpy as np

from stages.lib.files import check_arrays, read_json, replacing
from stages.lib.models import build, keras, tensorflow
from stages.lib.params import TrainParams, read_params

NORMALIZED = Path("data/normalized")
WEIGHTS = Path("data/model.weights.h5")
HISTORY = Path("data/history.csv")


class EpochLog(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Prints a line and writes a CSV row at the end of each epoch; stops where a loss is no longer a number.

    Args:
        epochs: How many there will be.
        file: Open for writing; gets a header and then a row per epoch.
    """

    def __init__(self, epochs: int, file: IO[str]) -> None:
        super().__init__()
        self.epochs, self.file = epochs, file
        self.file.write("epoch,loss,accuracy,val_loss,val_accuracy\n")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        values = {name: (logs or {})[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        seconds = time.perf_counter() - self.start
        print(
            f"epoch {epoch + 1:{len(str(self.epochs))}}/{self.epochs}",
            *(f"{name} {value:.4f}" for name, value in values.items()),
            f"{seconds:.1f} s",
            sep="  ",
        )
        for name, value in values.items():
            if not math.isfinite(value):
                raise StageError(
                    f"epoch {epoch + 1}: expected a finite {name}, found {value}; lower train.learning_rate"
                )
        self.file.write(",".join([str(epoch + 1), *(f"{value:.6f}" for value in values.values())]) + "\n")
        self.file.flush()


def tensor(path: Path) -> tensorflow.Tensor:
    """Maps a `.npy` file into memory as a tensor: Keras, given a NumPy array, would copy it twice."""
    # mode "c": DLPack hands over only what may be written to; what is written never reaches the file.
    return tensorflow.experimental.dlpack.from_dlpack(np.load(path, mmap_mode="c", allow_pickle=False).__dlpack__())


def batches(
    images: tensorflow.Tensor, labels: tensorflow.Tensor, size: int, *, shuffled: bool
) -> tensorflow.data.Dataset:
    """Feeds a split, batch by batch.

    What Keras makes of two arrays has the same order in every epoch once a seed is set, and its threads of automatic
    tuning, which the end of an epoch waits for, may sleep through a second.

    Args:
        images: Shape (n, height, width), float32.
        labels: Shape (n,), uint8.
        size: Images in a batch; the last one may be smaller.
        shuffled: Whether each epoch has an order of its own, which Keras's random seed decides.

    Returns:
        Pairs of images and labels.
    """
    options = tensorflow.data.Options()
    options.autotune.enabled = False
    order = tensorflow.data.Dataset.range(len(images))
    if shuffled:
        order = order.shuffle(len(images))
    rows = order.batch(size).map(lambda chosen: (tensorflow.gather(images, chosen), tensorflow.gather(labels, chosen)))
    return rows.prefetch(2).with_options(options)


def learning_rate(params: TrainParams, steps: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Adam's step size over the training.

    Args:
        params: The section `train` of params.yaml.
        steps: Number of batches in all epochs together.

    Returns:
        One number, or a schedule: linear from 0 to `learning_rate` over the first 30 % of the steps, then half a cosine
        back to 0 (one cycle: Smith 2018, arXiv:1803.09820; Adam keeps its momentum).
    """
    if params.schedule == "constant":
        return params.learning_rate
    warmup = round(0.3 * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=params.learning_rate, warmup_steps=warmup
    )


def fit(
    model: keras.Model,
    params: TrainParams,
    train: tuple[tensorflow.Tensor, tensorflow.Tensor],
    validation: tuple[tensorflow.Tensor, tensorflow.Tensor],
    log: keras.callbacks.Callback,
) -> None:
    """Fits a model with Adam on sparse categorical cross-entropy.

    Args:
        model: From images to probabilities; its weights are changed.
        params: The section `train` of params.yaml.
        train: Images (n, height, width), float32, and labels (n,), uint8.
        validation: The same, looked at after each epoch.
        log: Told of each epoch.
    """
    steps = math.ceil(len(train[0]) / params.batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate(params, steps * params.epochs)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # One call into TensorFlow per epoch, each step one XLA kernel: twice the speed of a call per batch.
        jit_compile=True,
        steps_per_execution=steps,
    )
    model.fit(
        batches(*train, params.batch_size, shuffled=True),
        shuffle=False,  # they are; Keras would say that it cannot
        epochs=params.epochs,
        validation_data=batches(*validation, 1_000, shuffled=False),
        callbacks=[log],
        verbose=0,
    )


def split(name: str) -> tuple[tensorflow.Tensor, tensorflow.Tensor]:
    """Images, shape (n, height, width), float32, and labels, shape (n,), uint8, of a normalized split."""
    check_arrays(NORMALIZED / "scaling.json", f"{name}_images", f"{name}_labels")
    return tensor(NORMALIZED / f"{name}_images.npy"), tensor(NORMALIZED / f"{name}_labels.npy")


def main() -> None:
    params = read_params()
    train, held_out = split("train"), split("validation")
    if not len(held_out[1]):  # the tutorial's protocol holds nothing out and draws its curves on the test split
        held_out = split("test")
    keras.utils.set_random_seed(params.train.seed)
    classes = int(read_json(NORMALIZED / "scaling.json")["classes"])
    model, plain = (build(params.model, train[0].shape[1:], classes) for _ in range(2))
    model.summary()
    start = time.perf_counter()
    with replacing(HISTORY) as history:
        with history.open("w") as file:
            fit(model, params.train, train, held_out, EpochLog(params.train.epochs, file))
        plain.set_weights(model.get_weights())  # without Adam's moments, which are twice as large
        with replacing(WEIGHTS) as weights:
            weights.write_bytes(bytes(2 * sum(array.nbytes for array in plain.get_weights()) + 2**20))
            weights.unlink()  # there was room: where there is none, HDF5 crashes
            plain.save_weights(weights)
    print(f"fit {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
