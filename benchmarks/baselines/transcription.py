"""A transcription of the tutorial as one Keras script.

HyunMin Kim, "MNIST 데이터로 해보는 딥러닝 (Deep Learning)", 29 October 2020, hmkim312.github.io.
Images are converted to float32, as in all other implementations, and the progress bar is off.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np


class Timer(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Record the end of each epoch, including its validation."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.ends.append(time.perf_counter())


def draw(
    folder: Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    history: dict[str, list[float]],
    predicted: np.ndarray,
) -> None:
    """Draw the tutorial's three figures: samples, learning curves, misclassified images."""
    from matplotlib import pyplot

    def images(name: str, shown: np.ndarray, titles: list[str]) -> None:
        figure, grid = pyplot.subplots(4, 4, figsize=(14, 12))
        for axes, image, title in zip(grid.flat, shown, titles, strict=False):
            axes.imshow(image, cmap="gray")
            axes.set_title(title)
            axes.axis("off")
        figure.savefig(folder / f"{name}.png")

    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(train[0]), 16)
    images("samples", train[0][chosen], [str(label) for label in train[1][chosen]])
    figure, axes = pyplot.subplots(figsize=(12, 8))
    for name, values in history.items():
        axes.plot(values, label=name)
    axes.legend()
    figure.savefig(folder / "history.png")
    wrong = rng.choice(np.flatnonzero(predicted != test[1]), 16)
    titles = [f"Label : {test[1][i]} Predict : {predicted[i]}" for i in wrong]
    images("errors", test[0][wrong], titles)


def main() -> None:
    """Load, fit and evaluate; with --figures, also predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("npz", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--figures", type=Path)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    with np.load(args.npz) as data:
        x_train, y_train = data["x_train"], data["y_train"]
        x_test, y_test = data["x_test"], data["y_test"]
    train_images, test_images = (
        (images / 255.0).astype(np.float32) for images in (x_train, x_test)
    )
    model = keras.Sequential(
        [
            keras.layers.Flatten(input_shape=(28, 28)),
            keras.layers.Dense(1000, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    timer = Timer()
    start = time.perf_counter()
    history = model.fit(
        train_images,
        y_train,
        batch_size=100,
        epochs=args.epochs,
        validation_data=(test_images, y_test),
        callbacks=[timer],
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(test_images, y_test, verbose=0)
    if args.figures:
        predicted = model.predict(test_images, verbose=0).argmax(axis=1)
        draw(args.figures, (x_train, y_train), (x_test, y_test), history, predicted)
    result = {
        "seconds": seconds,
        "epochs": np.diff([start, *timer.ends]).tolist(),
        "accuracy": accuracy,
        "accuracies": history["val_accuracy"],
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
