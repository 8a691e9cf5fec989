"""The predict stage in Keras, with the weights of data/model.onnx, on the same images."""

import argparse
import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # must be set before the import

import keras
import numpy as np
import onnx
from onnx import numpy_helper


def rebuild() -> tuple[keras.Sequential, np.ndarray, np.ndarray]:
    """Rebuild the MLP of data/model.onnx; return it with the offset and divisor of its scaling."""
    tensors = map(numpy_helper.to_array, onnx.load("data/model.onnx").graph.initializer)
    # Other tensors are shapes.
    offset, divisor, *weights = (tensor for tensor in tensors if tensor.dtype == np.float32)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(1000, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.set_weights(weights)
    return model, offset, divisor


def main() -> None:
    """Predict the validation and test splits, and save the probabilities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("npz", help="output file for the probabilities")
    output = parser.parse_args().npz
    model, offset, divisor = rebuild()
    images = {
        "validation": np.load("data/raw/train_images.npy")[np.load("data/normalized/held_out.npy")],
        "test": np.load("data/raw/test_images.npy"),
    }
    probabilities = {
        f"{split}_probabilities": model.predict((published - offset) / divisor, verbose=0)
        for split, published in images.items()
    }
    np.savez(output, allow_pickle=False, **probabilities)


if __name__ == "__main__":
    main()
