"""Architectures, uncompiled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from stages.lib.params import LinearParams, MlpParams, ModelParams
from stages.lib.stage import expect_memory

__all__ = ["build", "keras"]  # keras too: imported here first, it stays quiet


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


def build(params: ModelParams, image: tuple[int, int], classes: int) -> keras.Model:
    """Builds the architecture that `model.kind` names, with weights that Keras's random seed decides.

    Args:
        params: The section `model` of params.yaml.
        image: Height and width in pixels.
        classes: Number of classes.

    Returns:
        A model from images, shape (n, height, width), float32, to probabilities, shape (n, classes), float32.
    """
    if params.kind == "mlp":
        return mlp(params.mlp, image, classes)
    return linear(params.linear, image, classes)
