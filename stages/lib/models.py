"""Architectures, uncompiled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import h5py

from stages.lib.params import LinearParams, MlpParams, ModelParams
from stages.lib.stage import StageError, expect_memory

__all__ = ["build", "keras", "load", "tensorflow"]  # the libraries too: imported here first, they stay quiet


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


def _contents(content: IO[bytes]) -> dict[str, str]:
    """What an HDF5 file holds, by name, read from its declarations alone: no link is followed, no array read."""
    found = {}
    with h5py.File(content) as file:

        def look(name: str, link: object) -> None:
            item = file[name] if isinstance(link, h5py.HardLink) else link
            found[name] = type(item).__name__
            if isinstance(item, h5py.Dataset):
                layout = item.id.get_create_plist().get_layout()
                plain = layout == h5py.h5d.CONTIGUOUS and not item.external
                found[name] = f"{item.dtype} of shape {item.shape}{'' if plain else ', stored elsewhere or in pieces'}"

        file.visititems_links(look)
    return found


def load(model: keras.Model, path: Path) -> None:
    """Loads weights from a file that has to declare exactly the arrays of the model: no code, no link, no other size.

    Args:
        model: As from `build`; its weights are changed.
        path: An HDF5 file as from `save_weights`.

    Raises:
        StageError: The file is damaged, or it holds anything else.
    """
    with TemporaryDirectory() as folder:
        model.save_weights(own := Path(folder) / "own.weights.h5")
        with own.open("rb") as content:
            expected = _contents(content)
    with path.open("rb") as content:
        try:
            found = _contents(content)
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:  # whatever h5py makes of the bytes
            words = " ".join(str(error).split())
            raise StageError(f"{path}: expected a whole HDF5 file, found: {words}; dvc repro") from error
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise StageError(
                f"{path}: expected weights of model.{model.name} in params.yaml, {name!r} as "
                f"{expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}; dvc repro"
            )
    model.load_weights(path)
