"""Counts the arithmetic of a multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise


def forward(layers: Sequence[int]) -> int:
    """Floating-point operations to predict one image.

    A dense layer from n to m units multiplies a row of n numbers with an (n, m) matrix: n m
    products and as many sums. For 784, 1000 and 10 units, 2 (784 * 1000 + 1000 * 10) = 1,588,000.
    Biases, relu, softmax and the loss are some thousandths of that and not counted.

    Args:
        layers: Units of each layer, from the pixels to the classes.

    Returns:
        Products and sums in matrix products.
    """
    return sum(2 * n * m for n, m in pairwise(layers))


def backward(layers: Sequence[int]) -> int:
    """Floating-point operations of one image's gradients.

    Each layer's weights take a product of its inputs and the gradient of its outputs, as large as
    forward; each layer except the first takes one more for the gradient of its inputs. The pixels
    need none. For 784, 1000 and 10 units, 1,588,000 + 2 * 1000 * 10 = 1,608,000.

    Args:
        layers: Units of each layer, from the pixels to the classes.

    Returns:
        Products and sums in matrix products.
    """
    return forward(layers) + forward(layers[1:])


def epoch(layers: Sequence[int], images: int, validated: int = 0) -> int:
    """Floating-point operations of an epoch: training split, then validation split.

    For 784, 1000 and 10 units and 60,000 images, 60,000 * (1,588,000 + 1,608,000) = 191.76e9;
    10,000 images to validate on add 15.88e9. Adam's update, some 12 operations for each of 795,010
    weights in each of 600 steps, would add 3 % and is not counted: it is no matrix product.

    Args:
        layers: Units of each layer, from the pixels to the classes.
        images: Number of training images.
        validated: Number of validation images.

    Returns:
        Products and sums in matrix products.
    """
    return images * (forward(layers) + backward(layers)) + validated * forward(layers)
