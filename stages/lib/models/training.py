"""Train networks."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.lib.files import read_json
from stages.lib.models.graph import describe, from_keras
from stages.lib.models.networks import flips, import_keras, multiply_adds
from stages.lib.models.runtime import RejectedError, check_model
from stages.lib.params import ModelParams, TrainParams
from stages.lib.stage import StageError

if TYPE_CHECKING:
    import keras
    import tensorflow

    from stages.lib.models.networks import Build

    Split = tuple[tensorflow.Tensor, tensorflow.Tensor]  # images (n, ...), float32; labels, uint8

STEPS_PER_CALL = 50  # steps in one call into TensorFlow, after which the loss is checked
ADVICE = "lower train.learning_rate"
FEW_STEPS = 500  # with fewer optimizer steps in total, a network is rarely trained well


def tensor(path: Path) -> "tensorflow.Tensor":
    """Memory-map a `.npy` file as a tensor; Keras would copy a NumPy array twice."""
    import_keras()
    from tensorflow.experimental import dlpack

    # DLPack rejects read-only memory. Mode "c" is copy-on-write: the file never changes.
    return dlpack.from_dlpack(np.load(path, mmap_mode="c", allow_pickle=False).__dlpack__())


def batches(
    images: "tensorflow.Tensor", labels: "tensorflow.Tensor", *sizes: int, shuffled: bool
) -> "tensorflow.data.Dataset":
    """Build a dataset of batches from a split.

    Given arrays and a fixed seed, Keras would reuse one permutation in every epoch. Autotuning is
    disabled because an epoch ends only after its threads, which may sleep for a second.

    Args:
        images: Shape (n, height, width) or (n, height, width, 3), float32.
        labels: Shape (n,), uint8.
        sizes: Images per batch, then, if given, batches per group; the last may be smaller.
        shuffled: Whether to reshuffle every epoch, seeded by Keras's random seed.

    Returns:
        Pairs of images and labels.
    """
    import_keras()
    import tensorflow

    options = tensorflow.data.Options()
    options.autotune.enabled = False
    # The default optimizations would copy the images.
    options.experimental_optimization.apply_default_optimizations = False
    order = tensorflow.data.Dataset.range(len(images))
    if shuffled:
        order = order.shuffle(len(images))
    for size in sizes:
        order = order.batch(size)
    rows = order.map(lambda i: (tensorflow.gather(images, i), tensorflow.gather(labels, i)))
    return rows.prefetch(2).with_options(options)


def learning_rate(
    params: TrainParams, steps: int
) -> "float | keras.optimizers.schedules.LearningRateSchedule":
    """Create the learning rate schedule.

    Args:
        params: The section `train` of params.yaml.
        steps: Total number of batches over all epochs.

    Returns:
        A constant, or a one-cycle schedule: linear warmup from 0 to `learning_rate` over the first
        30% of the steps, then cosine decay to 0 (Smith 2018, arXiv:1803.09820, without a momentum
        cycle).
    """
    if params.schedule == "constant":
        return params.learning_rate
    warmup = round(0.3 * steps)
    return import_keras().optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=params.learning_rate, warmup_steps=warmup
    )


def cross_entropy(
    label_smoothing: float,
) -> "str | Callable[[tensorflow.Tensor, tensorflow.Tensor], tensorflow.Tensor]":
    """Create the cross-entropy loss for integer labels, with optional label smoothing.

    Args:
        label_smoothing: Fraction of each label's probability that is spread evenly over all classes
            (Szegedy et al. 2016, arXiv:1512.00567, section 7); 0 for none.

    Returns:
        The name of a Keras loss, or a function that maps labels, shape (n,), and probabilities,
        float32, shape (n, classes), to losses in nats, float32, shape (n,).
    """
    name = "sparse_categorical_crossentropy"
    if not label_smoothing:
        return name
    keras = import_keras()

    def smoothed(labels: "tensorflow.Tensor", probabilities: "tensorflow.Tensor") -> Any:  # noqa: ANN401
        one_hot = keras.ops.one_hot(labels, probabilities.shape[-1])
        return keras.losses.categorical_crossentropy(
            one_hot, probabilities, label_smoothing=label_smoothing
        )

    return smoothed


def loop_over_batches(model: "keras.Model") -> None:
    """Make a model train on groups of batches, in a loop that XLA compiles as a whole.

    Results are bit-identical to those of single batches.

    Args:
        model: A network that is not compiled yet.
    """
    import tensorflow

    step = model.train_step

    def steps(data: "Split") -> dict[str, tensorflow.Tensor]:
        def one(i: tensorflow.Tensor) -> list[tensorflow.Tensor]:
            step((data[0][i], data[1][i]))
            return [i + 1]

        tensorflow.while_loop(lambda i: i < tensorflow.shape(data[0])[0], one, [0])
        metrics: dict[str, tensorflow.Tensor] = model.get_metrics_result()
        return metrics

    model.train_step = steps


def callbacks(epochs: int, history: Path) -> list["keras.callbacks.Callback"]:
    """Create callbacks that print a line and write a CSV row per epoch, and stop on NaN or Inf."""
    kinds = import_keras().callbacks
    logger, start = kinds.CSVLogger(history), [time.perf_counter()]
    write_row = logger.on_epoch_end
    logger.on_epoch_end = lambda epoch, logs=None: write_row(epoch + 1, logs)  # counted from 1

    def begin(epoch: int, logs: Mapping[str, float] | None = None) -> None:
        start[0] = time.perf_counter()

    def end(epoch: int, logs: Mapping[str, float]) -> None:
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in names)
        number = f"{epoch + 1:{len(str(epochs))}}/{epochs}"
        print(f"epoch {number}  {values}  {time.perf_counter() - start[0]:.1f} s")
        if not math.isfinite(logs["val_loss"]):
            raise StageError(f"val_loss is {logs['val_loss']} after epoch {epoch + 1}; {ADVICE}")

    printer = kinds.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)
    return [kinds.TerminateOnNaN(raise_error=True), printer, logger]


def fit(
    model: "keras.Model", params: TrainParams, train: "Split", validation: "Split", history: Path
) -> None:
    """Fit a model with Adam, minimizing the loss of `cross_entropy`.

    Args:
        model: Maps images to probabilities; trained in place.
        params: The section `train` of params.yaml.
        train: The training split.
        validation: The split to evaluate after each epoch.
        history: Path of the CSV file, which gets a row after each epoch.

    Raises:
        StageError: A loss is not finite.
    """
    keras = import_keras()
    count, size = len(train[0]), params.batch_size
    steps = math.ceil(count / size)
    if (total := steps * params.epochs) < FEW_STEPS:
        print(f"only {total} optimizer steps: lower train.batch_size or raise train.epochs")
    # XLA makes dense layers twice as fast, and convolutions and dropout several times slower.
    slow = keras.layers.Conv2D, keras.layers.Dropout
    compiled = not any(isinstance(layer, slow) for layer in model.layers)
    sizes, steps_per_call = [size], STEPS_PER_CALL
    if compiled and count % size == 0:
        loop_over_batches(model)  # saves 10% of the time
        sizes.append(max(divisor for divisor in range(1, 65) if steps % divisor == 0))
        steps_per_call = max(1, steps_per_call // sizes[1])
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate(params, total)),
        loss=cross_entropy(params.label_smoothing),
        metrics=["accuracy"],
        jit_compile=compiled,
        steps_per_execution=steps_per_call,
    )
    # Once its variables exist, Keras traces the training step once; otherwise twice.
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, train[1][:1], keras.ops.zeros((1, *model.output_shape[1:])))
    model.reset_metrics()
    model.make_train_function()
    model.jit_compile = False  # compiling the validation takes longer than running it
    watchers = callbacks(params.epochs, history)
    try:
        model.fit(
            batches(*train, *sizes, shuffled=True),
            shuffle=False,  # `batches` shuffles; Keras would warn that it cannot
            epochs=params.epochs,
            validation_data=batches(*validation, 1_000, shuffled=False),
            callbacks=watchers,
            verbose=0,
        )
    except RuntimeError as error:
        if not str(error).startswith("NaN or Inf loss"):  # raised by TerminateOnNaN
            raise
        raise StageError(f"the loss is no longer finite; {ADVICE}") from error
    finally:
        for watcher in watchers:  # Keras leaves the CSV file open if the training fails
            watcher.on_train_end()


def train(
    build: "Build",
    architecture: ModelParams,
    params: TrainParams,
    dataset: Mapping[str, Any],
    folder: Path,
    held_out: str,
    history: Path,
) -> bytes:
    """Train a network; print its summary and a line per epoch.

    Args:
        build: Builds the network.
        architecture: The section `model` of params.yaml.
        params: The section `train`.
        dataset: The content of dataset.json.
        folder: Folder of the normalized splits.
        held_out: Name of the split to evaluate after each epoch.
        history: Path of the CSV file for the losses and accuracies of each epoch.

    Returns:
        The content of a model file.

    Raises:
        StageError: A loss is not finite, or the architecture does not fit the images.
    """
    scaling = read_json(folder / "scaling.json")
    import_keras().utils.set_random_seed(params.seed)
    model, flip = build(architecture, dataset, scaling), flips(architecture, dataset)
    model.summary()
    work = multiply_adds(model) * (2 if flip else 1)
    metadata = describe(dataset, architecture.kind, model.count_params(), work)
    convert = partial(from_keras, model, scaling["offset"], scaling["divisor"], metadata, flip=flip)
    try:
        check_model(convert())  # fail before hours of training, not after
    except RejectedError as error:
        section = f"params.yaml: model.{architecture.kind}"
        raise StageError(f"{section}: {error}; use a smaller network or smaller images") from error
    splits = {
        name: (tensor(folder / f"{name}_images.npy"), tensor(folder / f"{name}_labels.npy"))
        for name in ("train", held_out)
    }
    fit(model, params, splits["train"], splits[held_out], history)
    return convert()
