"""Count the floating-point operations of a multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise


def forward(layers: Sequence[int]) -> int:
    """Count floating-point operations of the forward pass, per image.

    A dense layer from n to m units multiplies a row of n numbers by an (n, m) matrix: n m products
    and as many sums. For 784, 1000 and 10 units, 2 (784 * 1000 + 1000 * 10) = 1,588,000. Biases,
    ReLU, softmax and the loss are a few thousandths of that and are not counted.

    Args:
        layers: Units of each layer, from the pixels to the classes.

    Returns:
        Products and sums in matrix products.
    """
    return sum(2 * n * m for n, m in pairwise(layers))


def backward(layers: Sequence[int]) -> int:
    """Count floating-point operations of the backward pass, per image.

    The gradient of each layer's weights is a product of its inputs and the gradient of its outputs,
    as large as in the forward pass. Each layer except the first needs another product for the
    gradient of its inputs. For 784, 1000 and 10 units, 1,588,000 + 2 * 1000 * 10 = 1,608,000.

    Args:
        layers: Units of each layer, from the pixels to the classes.

    Returns:
        Products and sums in matrix products.
    """
    return forward(layers) + forward(layers[1:])


def epoch(layers: Sequence[int], images: int, validated: int = 0) -> int:
    """Count floating-point operations of an epoch, validation included.

    For 784, 1000 and 10 units and 60,000 images, 60,000 * (1,588,000 + 1,608,000) = 191.76e9;
    10,000 validation images add 15.88e9. Adam's update, about 12 operations for each of 795,010
    weights in each of 600 steps, would add 3% and is not counted: it is not a matrix product.

    Args:
        layers: Units of each layer, from the pixels to the classes.
        images: Number of training images.
        validated: Number of validation images.

    Returns:
        Products and sums in matrix products.
    """
    return images * (forward(layers) + backward(layers)) + validated * forward(layers)
