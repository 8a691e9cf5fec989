"""The fit in JAX: one jitted function per epoch, `lax.scan` over batches, handwritten Adam."""

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NORMALIZED = Path("data/normalized")
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the training; `steps` is the total number of batches over all epochs."""

    batch_size: int
    learning_rate: float
    one_cycle: bool
    steps: int

    def rate(self, step: jax.Array) -> jax.Array | float:
        """Return the learning rate as in the train stage: linear warmup, then cosine decay to 0."""
        if not self.one_cycle:
            return self.learning_rate
        warm_up = round(0.3 * self.steps)
        down = (1 + jnp.cos(jnp.pi * (step - warm_up) / (self.steps - warm_up))) / 2
        return self.learning_rate * jnp.where(step < warm_up, step / warm_up, down)


def score(
    weights: Any,  # noqa: ANN401  # a tree
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the mean cross-entropy, and the number of correctly classified images."""
    (first, first_bias), (second, second_bias) = weights
    logits = jax.nn.relu(images @ first + first_bias) @ second + second_bias
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()
    return loss, (logits.argmax(1) == labels).sum()


@partial(jax.jit, donate_argnums=0, static_argnums=5)
def epoch(
    state: Any,  # noqa: ANN401
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    test: Any,  # noqa: ANN401
    recipe: Recipe,
) -> Any:  # noqa: ANN401
    """Train for one epoch on shuffled images, and evaluate on the test images."""

    def step(state: Any, chosen: jax.Array) -> Any:  # noqa: ANN401
        weights, means, squares, count = state
        (loss, right), gradients = jax.value_and_grad(score, has_aux=True)(
            weights, images[chosen], labels[chosen]
        )
        rate = recipe.rate(count)
        count = count + 1
        rate = rate * jnp.sqrt(1 - BETA2**count) / (1 - BETA1**count)
        means = jax.tree.map(lambda m, g: m + (g - m) * (1 - BETA1), means, gradients)
        squares = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - BETA2), squares, gradients)
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), weights, means, squares
        )
        return (weights, means, squares, count), (loss, right)

    order = jax.random.permutation(key, len(images)).reshape(-1, recipe.batch_size)
    state, (losses, right) = jax.lax.scan(step, state, order)
    return state, losses.mean(), right.sum() / len(images), score(state[0], *test)[1]


def main() -> None:
    """Fit once, and print times and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--one-cycle", action="store_true")
    args = parser.parse_args()
    images, test_images = (
        jnp.asarray(np.load(NORMALIZED / f"{split}_images.npy").reshape(-1, 784))
        for split in ("train", "test")
    )
    labels, test_labels = (
        jnp.asarray(np.load(NORMALIZED / f"{split}_labels.npy").astype(np.int32))
        for split in ("train", "test")
    )
    steps = args.epochs * (len(images) // args.batch_size)
    recipe = Recipe(args.batch_size, args.learning_rate, args.one_cycle, steps)
    key = jax.random.key(args.seed)
    weights = []
    for n, m in ((784, 1000), (1000, 10)):
        key, drawn = jax.random.split(key)
        weights.append((jax.nn.initializers.glorot_uniform()(drawn, (n, m)), jnp.zeros(m)))
    state = (
        weights,
        jax.tree.map(jnp.zeros_like, weights),
        jax.tree.map(jnp.zeros_like, weights),
        jnp.zeros(()),
    )
    jax.block_until_ready((state, images, test_images))
    start = time.perf_counter()
    ends: list[float] = []
    accuracies: list[float] = []
    for _ in range(args.epochs):
        key, drawn = jax.random.split(key)
        test = test_images, test_labels
        state, loss, right, hits = epoch(state, drawn, images, labels, test, recipe)
        accuracies.append(float(hits) / len(test_labels))
        ends.append(time.perf_counter())
        print(f"loss {float(loss):.4f}  accuracy {float(right):.4f}  {accuracies[-1]:.4f}")
    result = {
        "seconds": ends[-1] - start,
        "epochs": np.diff([start, *ends]).tolist(),
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
