"""Architectures, uncompiled."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.lib.files import replacing
from stages.lib.models.weights import check_weights, contents, make_room
from stages.lib.params import CnnParams, LinearParams, MlpParams, ModelParams
from stages.lib.stage import StageError, expect_memory

__all__ = [
    "build",
    "keras",
    "load",
    "multiply_adds",
    "restore",
    "save",
    "tensorflow",
]  # the libraries too: imported here first, they stay quiet


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drops what is written to stderr by C++ code too; a Python error still comes through."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


expect_memory(4)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _without_stderr():  # TensorFlow says that it found no GPU before its log level counts
    import keras
    import tensorflow
    from keras import layers


def mlp(params: MlpParams, image: tuple[int, int], classes: int) -> keras.Model:
    """A multilayer perceptron: flatten, dense layers with relu and dropout, softmax over the classes.

    Args:
        params: The section `model.mlp` of params.yaml.
        image: Height and width in pixels.
        classes: Number of classes.

    Returns:
        A model as from `build`.
    """
    stack = [keras.Input(image), layers.Flatten()]
    for units in params.hidden:
        stack.append(layers.Dense(units, activation="relu"))
        if params.dropout:
            stack.append(layers.Dropout(params.dropout))
    return keras.Sequential([*stack, layers.Dense(classes, activation="softmax")], name="mlp")


def linear(params: LinearParams, image: tuple[int, int], classes: int) -> keras.Model:
    """Softmax regression: one dense layer, with its squared weights added to the loss.

    Args:
        params: The section `model.linear` of params.yaml.
        image: Height and width in pixels.
        classes: Number of classes.

    Returns:
        A model as from `build`.
    """
    penalty = keras.regularizers.L2(params.l2) if params.l2 else None
    output = layers.Dense(classes, activation="softmax", kernel_regularizer=penalty)
    return keras.Sequential([keras.Input(image), layers.Flatten(), output], name="linear")


def augmentation(
    params: CnnParams, image: tuple[int, int], *, mirrored: bool, background: float
) -> list[layers.Layer]:
    """Layers that move, turn and mirror the images at random while training, and let them be otherwise.

    Args:
        params: The section `model.cnn` of params.yaml.
        image: Height and width in pixels.
        mirrored: Whether a mirrored image is one of the same class.
        background: What comes in at an edge.

    Returns:
        Layers from images to images, shape (n, height, width, 1).

    Raises:
        StageError: The shift is larger than the image.
    """
    height, width = image
    if params.shift > min(image):
        raise StageError(
            f"params.yaml: model.cnn.shift: expected at most {min(image)} pixels, found {params.shift}"
        )
    fill = {"fill_mode": "constant", "fill_value": background}
    stack: list[layers.Layer] = []
    if params.shift:
        stack.append(layers.RandomTranslation(params.shift / height, params.shift / width, **fill))
    if params.rotation:
        stack.append(layers.RandomRotation(params.rotation / 360, **fill))
    if params.flip and mirrored:
        stack.append(layers.RandomFlip("horizontal"))
    return stack


def cnn(
    params: CnnParams, image: tuple[int, int], classes: int, *, mirrored: bool, background: float
) -> keras.Model:
    """A small convolutional network: blocks of 3x3 convolutions, pooling, batch normalization and relu; then softmax.

    Args:
        params: The section `model.cnn` of params.yaml.
        image: Height and width in pixels.
        classes: Number of classes.
        mirrored: Whether a mirrored image is one of the same class.
        background: The intensity around what an image shows.

    Returns:
        A model as from `build`.

    Raises:
        StageError: The shift is larger than the image.
    """
    moved = augmentation(params, image, mirrored=mirrored, background=background)
    stack = [keras.Input(image), layers.Reshape((*image, 1)), *moved]
    for filters in params.filters:
        for i in range(params.depth):
            stack.append(
                layers.Conv2D(filters, 3, padding="same", use_bias=False)
            )  # the normalization has one
            if i == params.depth - 1:
                stack.append(
                    layers.MaxPooling2D(2, padding="same")
                )  # here, what follows has a quarter to do
            stack += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    stack.append(layers.Flatten())
    if params.dropout:
        stack.append(layers.Dropout(params.dropout))
    return keras.Sequential([*stack, layers.Dense(classes, activation="softmax")], name="cnn")


def build(params: ModelParams, scaling: Mapping[str, Any]) -> keras.Model:
    """Builds the architecture that `model.kind` names, with weights that Keras's random seed decides.

    Args:
        params: The section `model` of params.yaml.
        scaling: What normalize wrote into scaling.json.

    Returns:
        A model from images, shape (n, height, width), float32, to probabilities, shape (n,
        classes), float32.
    """
    height, width = scaling["arrays"]["test_images"]["shape"][1:]
    if params.kind == "mlp":
        return mlp(params.mlp, (height, width), scaling["classes"])
    if params.kind == "cnn":
        background = -scaling["offset"] / scaling["divisor"]  # gray level 0
        return cnn(
            params.cnn,
            (height, width),
            scaling["classes"],
            mirrored=scaling["flip"],
            background=background,
        )
    return linear(params.linear, (height, width), scaling["classes"])


def multiply_adds(model: keras.Model) -> int:
    """Products that are added up to predict one image: each layer's kernel, once for each place it is laid on."""
    kernels = (
        (layer.kernel.shape, layer.output.shape[1:-1])
        for layer in model.layers
        if hasattr(layer, "kernel")
    )
    return sum(math.prod(kernel) * math.prod(places) for kernel, places in kernels)


def save(model: keras.Model, path: Path) -> None:
    """Writes weights, once there is room for them: HDF5 would crash on a full disk.

    Args:
        model: As from `build`.
        path: An HDF5 file, `.weights.h5`.
    """
    make_room(path, sum(array.nbytes for array in model.get_weights()))
    model.save_weights(path)


def load(model: keras.Model, path: Path) -> None:
    """Loads weights from a file that has to declare exactly the arrays of the model.

    Args:
        model: As from `build`; its weights are changed.
        path: An HDF5 file as from `save_weights`.

    Raises:
        StageError: The file is damaged, or it holds anything else.
    """
    with TemporaryDirectory() as folder, replacing(Path(folder) / "own.weights.h5") as own:
        save(model, own)
        with own.open("rb") as content:
            expected = contents(content)
    check_weights(path, expected, model.name)
    model.load_weights(path)


def restore(
    params: ModelParams, scaling: Mapping[str, Any], weights: Path
) -> tuple[Callable[[np.ndarray], np.ndarray], int, int]:
    """A trained network.

    Args:
        params: The section `model` of params.yaml.
        scaling: What normalize wrote into scaling.json.
        weights: As from `save_weights`.

    Returns:
        A function from images, shape (n, height, width), float32, to probabilities, shape (n,
        classes), float32; its number of parameters; its multiply-adds to predict one image. A
        network that was trained on mirrored images too gives the mean of what it says of an image
        and of its mirror image (Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification
        with deep convolutional neural networks", section 4.1).

    Raises:
        StageError: The weights are not those of the model.
    """
    model = build(params, scaling)
    load(model, weights)

    def of_both(images: np.ndarray) -> np.ndarray:
        mean: np.ndarray = (
            model.predict_on_batch(images) + model.predict_on_batch(images[:, :, ::-1])
        ) / 2
        return mean

    if any(isinstance(layer, layers.RandomFlip) for layer in model.layers):
        return of_both, model.count_params(), 2 * multiply_adds(model)
    return model.predict_on_batch, model.count_params(), multiply_adds(model)
