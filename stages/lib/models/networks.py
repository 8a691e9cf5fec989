"""Keras architectures, uncompiled."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stages.lib.params import CnnParams, ModelParams
from stages.lib.stage import StageError, expect_memory

if TYPE_CHECKING:
    import keras

    Build = Callable[[ModelParams, Mapping[str, Any], Mapping[str, Any]], keras.Model]

MAX_MLP_WEIGHTS = 100_000_000  # 400 MB, plus 800 MB for Adam's moments


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard output to stderr, including that of C++ code."""
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


@cache
def import_keras() -> ModuleType:
    """Import Keras with TensorFlow, float32 and channels last, regardless of the user's settings.

    KERAS_BACKEND and `~/.keras/keras.json` may choose another backend, precision or layout,
    KERAS_MAX_* limit the number of steps, and KERAS_NNX_ENABLED requires JAX. The import takes
    seconds, so it is deferred.
    """
    expect_memory(4)
    os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED"):
        os.environ.pop(name, None)
    with _without_stderr():  # TensorFlow reports a missing GPU before its log level takes effect
        import keras
        import tensorflow

        # By default TensorFlow reserves all memory of every GPU.
        for gpu in tensorflow.config.list_physical_devices("GPU"):
            tensorflow.config.experimental.set_memory_growth(gpu, True)
    module: ModuleType = keras
    return module


def _image(dataset: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(dataset["arrays"]["train_images"]["shape"][1:])


def mlp(
    params: ModelParams, dataset: Mapping[str, Any], scaling: Mapping[str, Any]
) -> "keras.Model":
    """Build a multilayer perceptron: dense layers with ReLU and dropout, then softmax.

    Raises:
        StageError: It has more than `MAX_MLP_WEIGHTS` weights.
    """
    keras = import_keras()
    sizes = [math.prod(_image(dataset)), *params.mlp.hidden, len(dataset["classes"])]
    weights = sum(rows * columns for rows, columns in pairwise(sizes))
    if weights > MAX_MLP_WEIGHTS:
        raise StageError(
            f"params.yaml: model.mlp: {weights:,} weights for images of {sizes[0]:,} values; "
            f"at most {MAX_MLP_WEIGHTS:,} are supported: use model.kind=cnn, smaller images or "
            "layers"
        )
    stack = [keras.Input(_image(dataset)), keras.layers.Flatten()]
    for units in params.mlp.hidden:
        stack.append(keras.layers.Dense(units, activation="relu"))
        if params.mlp.dropout:
            stack.append(keras.layers.Dropout(params.mlp.dropout))
    output = keras.layers.Dense(sizes[-1], activation="softmax")
    return keras.Sequential([*stack, output], name="mlp")


def linear(
    params: ModelParams, dataset: Mapping[str, Any], scaling: Mapping[str, Any]
) -> "keras.Model":
    """Build a softmax regression: one dense layer with an L2 penalty on its kernel."""
    keras = import_keras()
    penalty = keras.regularizers.L2(params.linear.l2) if params.linear.l2 else None
    output = keras.layers.Dense(
        len(dataset["classes"]), activation="softmax", kernel_regularizer=penalty
    )
    stack = [keras.Input(_image(dataset)), keras.layers.Flatten(), output]
    return keras.Sequential(stack, name="linear")


def augmentation(
    params: CnnParams, image: tuple[int, ...], *, flip: bool, background: float
) -> list["keras.layers.Layer"]:
    """Build the layers of data augmentation, which are active during training only.

    Args:
        params: The section `model.cnn` of params.yaml.
        image: Height and width in pixels, and channels if any.
        flip: Whether to flip images horizontally at random.
        background: Intensity that fills the edges.

    Returns:
        Layers that map images to images, shape (n, height, width, channels).

    Raises:
        StageError: The translation is larger than the image.
    """
    layers = import_keras().layers
    height, width = image[:2]
    if params.shift > min(height, width):
        raise StageError(
            f"params.yaml: model.cnn.shift: expected at most {min(height, width)} pixels, "
            f"found {params.shift}"
        )
    fill = {"fill_mode": "constant", "fill_value": background}
    stack: list[Any] = []
    if params.shift:
        # By whole pixels, because interpolation would blur the training images only.
        size = (params.shift / height, params.shift / width)
        stack.append(layers.RandomTranslation(*size, interpolation="nearest", **fill))
    if params.rotation:
        stack.append(layers.RandomRotation(params.rotation / 360, **fill))
    if flip:
        stack.append(layers.RandomFlip("horizontal"))
    return stack


def flips(params: ModelParams, dataset: Mapping[str, Any]) -> bool:
    """Return whether to use horizontal flips in training and for test-time augmentation.

    Test-time augmentation follows Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification
    with deep convolutional neural networks", section 4.1.
    """
    return params.kind == "cnn" and params.cnn.flip and bool(dataset["flip"])


def cnn(
    params: ModelParams, dataset: Mapping[str, Any], scaling: Mapping[str, Any]
) -> "keras.Model":
    """Build a convolutional network: blocks of 3x3 convolutions, then dropout and softmax.

    A block has `depth` convolutions, each with batch normalization and ReLU. In the last one, max
    pooling precedes batch normalization, which then has a quarter of the pixels to normalize.

    Raises:
        StageError: The translation of the augmentation is larger than the image.
    """
    keras, cnn, image = import_keras(), params.cnn, _image(dataset)
    layers = keras.layers
    background = (dataset["background"] - scaling["offset"]) / scaling["divisor"]
    stack = [keras.Input(image)]
    if len(image) == 2:
        stack.append(layers.Reshape((*image, 1)))
    stack += augmentation(cnn, image, flip=flips(params, dataset), background=background)
    for filters in cnn.filters:
        for i in range(cnn.depth):
            # Batch normalization has its own bias.
            stack.append(layers.Conv2D(filters, 3, padding="same", use_bias=False))
            if i == cnn.depth - 1:
                stack.append(layers.MaxPooling2D(2, padding="same"))
            stack += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    stack.append(layers.Flatten())
    if cnn.dropout:
        stack.append(layers.Dropout(cnn.dropout))
    output = layers.Dense(len(dataset["classes"]), activation="softmax")
    return keras.Sequential([*stack, output], name="cnn")


def multiply_adds(model: "keras.Model") -> int:
    """Count the multiply-adds per image: kernel size times output positions, over all layers."""
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(
        math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in kernels
    )
