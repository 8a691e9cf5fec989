"""The experiment as one script, the way a newcomer writes it with Keras; written for this benchmark."""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np

NAMES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion_mnist": [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Boot",
    ],
}


class Timer(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Notes when each epoch ends, its validation included."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        self.ends.append(time.perf_counter())


def draw(
    folder: Path,
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    history: dict[str, list[float]],
    probabilities: np.ndarray,
) -> None:
    """Draws six of the pipeline's nine pictures with the pipeline's own functions."""
    import pandas as pd

    from stages.lib.files import write_figure
    from stages.lib.results import figures, metrics

    names, labels, predicted = NAMES[name], test[1], probabilities.argmax(axis=1)
    counts = metrics.confusion(labels, predicted, 10)
    wrong = np.flatnonzero(predicted != labels)
    pairs = Counter(zip(labels[wrong], predicted[wrong], strict=True)).most_common(10)
    confused = [(names[i], names[j], count) for (i, j), count in pairs]
    wrong = wrong[:16]
    table = pd.DataFrame(history)
    table.insert(0, "epoch", np.arange(1, len(table) + 1))
    label_names, guess_names = ([names[i] for i in array[wrong]] for array in (labels, predicted))
    pictures = {
        "samples": figures.samples(
            name, train[0][:16], [names[i] for i in train[1][:16]], levels=(0, 255), background=0
        ),
        "history": figures.history(name, table, "test"),
        "confusion": figures.confusion(name, counts, names),
        "classes": figures.classes(name, metrics.per_class(labels, predicted, names)),
        "pairs": figures.pairs(name, confused),
        "errors": figures.errors(
            name,
            test[0][wrong],
            label_names,
            guess_names,
            probabilities.max(axis=1)[wrong],
            levels=(0, 255),
            background=0,
        ),
    }
    for stem, figure in pictures.items():
        write_figure(folder / f"{stem}.png", figure)


def main() -> None:
    """Loads, fits, evaluates; with --figures also predicts and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("npz", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--figures", type=Path)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    with np.load(args.npz) as data:
        x_train, y_train, x_test, y_test = (
            data["x_train"],
            data["y_train"],
            data["x_test"],
            data["y_test"],
        )
    train_images, test_images = x_train / 255.0, x_test / 255.0

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
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(test_images, y_test)
    if args.figures:
        probabilities = model.predict(test_images)
        draw(
            args.figures,
            args.npz.stem,
            (x_train, y_train),
            (x_test, y_test),
            history.history,
            probabilities,
        )
    epochs = np.diff([start, *timer.ends]).tolist()
    print("\n" + json.dumps({"seconds": seconds, "epochs": epochs, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
