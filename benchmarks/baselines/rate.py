"""Measure the float32 operations per second of a library's matrix product."""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np

# Rows, inner dimension, columns: large squares, then shapes of the fit (forward pass, gradient of
# the weights, evaluation).
SHAPES = [
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (100, 784, 1000),
    (784, 100, 1000),
    (10_000, 784, 1000),
]
FLOP = 20e9  # operations per timing, which takes tens of milliseconds
TIMINGS = 7


def product(library: str, left: np.ndarray, right: np.ndarray) -> Callable[[], object]:
    """Return a function that computes a matrix product of arrays in the library's own format."""
    if library == "torch":
        import torch

        a, b = torch.from_numpy(left), torch.from_numpy(right)
        return lambda: a @ b
    if library in ("tensorflow", "xla"):
        import tensorflow as tf

        multiply = tf.function(tf.matmul, jit_compile=True) if library == "xla" else tf.matmul
        a, b = tf.constant(left), tf.constant(right)
        return lambda: multiply(a, b)
    out = np.empty((len(left), right.shape[1]), np.float32)
    return lambda: np.matmul(left, right, out=out)


def main() -> None:
    """Print the median rate of each shape, in GFLOP/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["numpy", "tensorflow", "xla", "torch"])
    library = parser.parse_args().library
    rng = np.random.default_rng(0)
    rates = {}
    for n, k, m in SHAPES:
        multiply = product(library, rng.random((n, k), np.float32), rng.random((k, m), np.float32))
        repeats = max(1, round(FLOP / (2 * n * k * m)))
        seconds = []
        for _ in range(TIMINGS):
            start = time.perf_counter()
            for _ in range(repeats):
                multiply()
            seconds.append(time.perf_counter() - start)
        rates[f"{n} x {k} x {m}"] = 2 * n * k * m * repeats / median(seconds) / 1e9
    print(json.dumps({"rates": rates, "rate": max(rates.values())}))


if __name__ == "__main__":
    main()
