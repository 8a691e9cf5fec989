"""How a network is trained."""

import math
import time
from pathlib import Path
from typing import IO

import numpy as np

from stages.lib.files import read_json
from stages.lib.models.networks import build, keras, save, tensorflow
from stages.lib.params import ModelParams, TrainParams
from stages.lib.stage import StageError


class EpochLog(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Prints a line and writes a CSV row at the end of each epoch; stops once a loss is no longer a finite number.

    Args:
        epochs: How many there will be.
        file: Open for writing; gets a header and then a row per epoch.
    """

    def __init__(self, epochs: int, file: IO[str]) -> None:
        super().__init__()
        self.epochs, self.file = epochs, file
        self.file.write("epoch,loss,accuracy,val_loss,val_accuracy\n")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.epoch, self.start = epoch + 1, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.expect_finite("loss", float((logs or {})["loss"]))

    def expect_finite(self, name: str, value: float) -> None:
        """Stops the training, unless a loss is a number that can get smaller."""
        if not math.isfinite(value):
            raise StageError(
                f"epoch {self.epoch}: expected a finite {name}, found {value}; lower train.learning_rate"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        values = {
            name: (logs or {})[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")
        }
        seconds = time.perf_counter() - self.start
        print(
            f"epoch {self.epoch:{len(str(self.epochs))}}/{self.epochs}",
            *(f"{name} {value:.4f}" for name, value in values.items()),
            f"{seconds:.1f} s",
            sep="  ",
        )
        self.expect_finite("val_loss", values["val_loss"])
        self.file.write(
            ",".join([str(self.epoch), *(f"{value:.6f}" for value in values.values())]) + "\n"
        )
        self.file.flush()


def tensor(path: Path) -> tensorflow.Tensor:
    """Maps a `.npy` file into memory as a tensor: Keras, given a NumPy array, would copy it twice."""
    # mode "c": DLPack hands over only what may be written to; what is written never reaches the
    # file.
    return tensorflow.experimental.dlpack.from_dlpack(
        np.load(path, mmap_mode="c", allow_pickle=False).__dlpack__()
    )


def batches(
    images: tensorflow.Tensor, labels: tensorflow.Tensor, *sizes: int, shuffled: bool
) -> tensorflow.data.Dataset:
    """Feeds a split, batch by batch.

    What Keras makes of two arrays has the same order in every epoch once a seed is set, and its
    threads of automatic tuning, which the end of an epoch waits for, may sleep through a second.

    Args:
        images: Shape (n, height, width), float32.
        labels: Shape (n,), uint8.
        sizes: Images in a batch, then batches in a batch of batches, if any; the last one may be
            smaller.
        shuffled: Whether each epoch has an order of its own, which Keras's random seed decides.

    Returns:
        Pairs of images and labels.
    """
    options = tensorflow.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = (
        False  # would copy the images, and save nothing
    )
    order = tensorflow.data.Dataset.range(len(images))
    if shuffled:
        order = order.shuffle(len(images))
    for size in sizes:
        order = order.batch(size)
    rows = order.map(
        lambda chosen: (tensorflow.gather(images, chosen), tensorflow.gather(labels, chosen))
    )
    return rows.prefetch(2).with_options(options)


def learning_rate(
    params: TrainParams, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Adam's step size over the training.

    Args:
        params: The section `train` of params.yaml.
        steps: Number of batches in all epochs together.

    Returns:
        One number, or a schedule: linear from 0 to `learning_rate` over the first 30 % of the
        steps, then half a cosine back to 0 (one cycle: Smith 2018, arXiv:1803.09820; Adam keeps its
        momentum).
    """
    if params.schedule == "constant":
        return params.learning_rate
    warmup = round(0.3 * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=params.learning_rate, warmup_steps=warmup
    )


def in_one_loop(model: keras.Model) -> None:
    """Lets a model train on batches of batches, in a loop that XLA compiles whole.

    Args:
        model: Not compiled yet; what it computes stays the same to the bit.
    """
    step = model.train_step

    def steps(data: tuple[tensorflow.Tensor, tensorflow.Tensor]) -> dict[str, tensorflow.Tensor]:
        def one(i: tensorflow.Tensor) -> list[tensorflow.Tensor]:
            step((data[0][i], data[1][i]))
            return [i + 1]

        tensorflow.while_loop(lambda i: i < tensorflow.shape(data[0])[0], one, [0])
        metrics: dict[str, tensorflow.Tensor] = model.get_metrics_result()
        return metrics

    model.train_step = steps


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
    count, size = len(train[0]), params.batch_size
    steps = math.ceil(count / size)
    # XLA makes dense layers twice as fast; convolutions, and the random numbers of dropout, several
    # times slower.
    slow = keras.layers.Conv2D, keras.layers.Dropout
    compiled = not any(isinstance(layer, slow) for layer in model.layers)
    sizes, steps_per_call = [size], 50  # after each call into TensorFlow the loss is looked at
    if compiled and count % size == 0:
        in_one_loop(model)  # saves a tenth of the time
        sizes.append(max(divisor for divisor in range(1, 65) if steps % divisor == 0))
        steps_per_call = max(1, steps_per_call // sizes[1])
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate(params, steps * params.epochs)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=compiled,
        steps_per_execution=steps_per_call,
    )
    model.fit(
        batches(*train, *sizes, shuffled=True),
        shuffle=False,  # they are; Keras would say that it cannot
        epochs=params.epochs,
        validation_data=batches(*validation, 1_000, shuffled=False),
        callbacks=[log],
        verbose=0,
    )


def train(
    architecture: ModelParams,
    params: TrainParams,
    folder: Path,
    held_out: str,
    weights: Path,
    history: Path,
) -> None:
    """Trains the network that `model.kind` names, prints its summary and a line per epoch.

    Args:
        architecture: The section `model` of params.yaml.
        params: The section `train`.
        folder: The normalized splits.
        held_out: The split to look at after each epoch.
        weights: Where the weights go.
        history: Where the loss and accuracy of each epoch go.

    Raises:
        StageError: A loss is no longer a finite number.
    """
    splits = [
        (tensor(folder / f"{name}_images.npy"), tensor(folder / f"{name}_labels.npy"))
        for name in ("train", held_out)
    ]
    scaling = read_json(folder / "scaling.json")
    keras.utils.set_random_seed(params.seed)
    model, plain = (build(architecture, scaling) for _ in range(2))
    model.summary()
    with history.open("w") as file:
        fit(model, params, splits[0], splits[1], EpochLog(params.epochs, file))
    plain.set_weights(model.get_weights())  # without Adam's moments, which are twice as large
    save(plain, weights)
