"""The same fit in JAX: one jitted function per epoch, `lax.scan` over its batches, Adam written out."""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NORMALIZED = Path("data/normalized")
BATCH = 100
LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-7


def score(weights: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:  # noqa: ANN401  # a tree
    """Mean cross-entropy, and number of images classified right."""
    (first, first_bias), (second, second_bias) = weights
    logits = jax.nn.relu(images @ first + first_bias) @ second + second_bias
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()
    return loss, (logits.argmax(1) == labels).sum()


@partial(jax.jit, donate_argnums=0)
def epoch(state: Any, key: jax.Array, images: jax.Array, labels: jax.Array, test: Any) -> Any:  # noqa: ANN401
    """One pass over the shuffled training images, and one look at the test images."""

    def step(state: Any, chosen: jax.Array) -> Any:  # noqa: ANN401
        weights, means, squares, count = state
        (loss, right), gradients = jax.value_and_grad(score, has_aux=True)(
            weights, images[chosen], labels[chosen]
        )
        count = count + 1
        rate = LEARNING_RATE * jnp.sqrt(1 - BETA2**count) / (1 - BETA1**count)
        means = jax.tree.map(lambda m, g: m + (g - m) * (1 - BETA1), means, gradients)
        squares = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - BETA2), squares, gradients)
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), weights, means, squares
        )
        return (weights, means, squares, count), (loss, right)

    order = jax.random.permutation(key, len(images)).reshape(-1, BATCH)
    state, (losses, right) = jax.lax.scan(step, state, order)
    return state, losses.mean(), right.sum() / len(images), score(state[0], *test)[1]


def main() -> None:
    """Fits once, and says how long it took and how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    images, test_images = (
        jnp.asarray(np.load(NORMALIZED / f"{split}_images.npy").reshape(-1, 784))
        for split in ("train", "test")
    )
    labels, test_labels = (
        jnp.asarray(np.load(NORMALIZED / f"{split}_labels.npy").astype(np.int32))
        for split in ("train", "test")
    )
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
    ends, accuracy = [], 0.0
    for _ in range(args.epochs):
        key, drawn = jax.random.split(key)
        state, loss, right, hits = epoch(state, drawn, images, labels, (test_images, test_labels))
        accuracy = float(hits) / len(test_labels)
        ends.append(time.perf_counter())
        print(f"loss {float(loss):.4f}  accuracy {float(right):.4f}  {accuracy:.4f}")
    epochs = np.diff([start, *ends]).tolist()
    print(json.dumps({"seconds": ends[-1] - start, "epochs": epochs, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
