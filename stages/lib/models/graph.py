"""Convert trained models to ONNX graphs that map published images to probabilities.

Graphs are built node by node, because Keras's own exporter uses tf2onnx, whose output differs
between processes. Tensors are named by position, so equal weights give identical files.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stages.lib.models.runtime import IR_VERSION, OPERATORS, OPSET

if TYPE_CHECKING:
    import keras


class Graph:
    """An ONNX graph under construction; tensors are identified by name.

    It starts with the input `images`, uint8, shape (n, height, width) or (n, height, width, 3),
    and the scaling of the stage normalize.

    Attributes:
        scaled: The name of (images - offset) / divisor, float32, in the shape of the images.
    """

    def __init__(self, offset: float, divisor: float) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        levels = self.add("Cast", "images", to=TensorProto.FLOAT)
        centered = self.add("Sub", levels, self.constant(offset))
        self.scaled = self.add("Div", centered, self.constant(divisor))

    def constant(self, value: Any, dtype: type = np.float32) -> str:  # noqa: ANN401  # array-like
        """Add a constant and return its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def shape(self, *sizes: int) -> str:
        """Add an int64 constant, for the shapes, axes and counts of ONNX operators."""
        return self.constant(sizes, np.int64)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node and return the name of its first output."""
        if operator not in OPERATORS:
            raise ValueError(f"{operator} is not among the operators that runtime accepts")
        outputs = [f"{operator}_{len(self._nodes)}"]
        if operator == "TopK":
            outputs.append(f"{outputs[0]}_indices")
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def finish(self, probabilities: str, metadata: Mapping[str, Any]) -> bytes:
        """Serialize the model.

        Args:
            probabilities: The name of the output, float32, shape (n, classes).
            metadata: As returned by `describe`.

        Returns:
            The content of an `.onnx` file, deterministic.
        """
        if probabilities != self._nodes[-1].output[0]:
            raise ValueError(f"{probabilities} is not the output of the last node")
        self._nodes[-1].output[0] = "probabilities"
        shapes = {
            "images": (TensorProto.UINT8, ["n", *metadata["image"]]),
            "probabilities": (TensorProto.FLOAT, ["n", len(metadata["classes"])]),
        }
        images, output = (helper.make_tensor_value_info(k, *v) for k, v in shapes.items())
        graph = helper.make_graph(
            self._nodes, metadata["kind"], [images], [output], self._constants
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in metadata.items()
        }
        helper.set_model_props(model, texts)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def describe(
    dataset: Mapping[str, Any], kind: str, parameters: int, multiply_adds: int
) -> dict[str, Any]:
    """Collect the metadata of a model file.

    Args:
        dataset: The content of dataset.json.
        kind: As in `model.kind` of params.yaml.
        parameters: Number of fitted parameters.
        multiply_adds: Number of multiply-adds per image.
    """
    return {
        "dataset": dataset["name"],
        "title": dataset["title"],
        "classes": dataset["classes"],
        "image": dataset["arrays"]["train_images"]["shape"][1:],
        "background": dataset["background"],
        "kind": kind,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
    }


# Conversion of Keras layers. Four-dimensional tensors are channels first in ONNX and channels last
# in Keras.
Layer = Any
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def _reshape(graph: Graph, layer: Layer, name: str) -> str:
    if len(layer.input.shape) == 4:
        name = graph.add("Transpose", name, perm=TO_CHANNELS_LAST)
    name = graph.add("Reshape", name, graph.shape(-1, *layer.output.shape[1:]))
    if len(layer.output.shape) == 4:
        name = graph.add("Transpose", name, perm=TO_CHANNELS_FIRST)
    return name


def _activation(graph: Graph, layer: Layer, name: str) -> str:
    function = layer.activation.__name__
    if function == "linear":
        return name
    if function == "softmax" and len(layer.output.shape) == 2:
        return graph.add("Softmax", name, axis=1)
    operators = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
    if function not in operators:
        raise ValueError(f"layer {layer.name}: no ONNX operator for activation {function}")
    return graph.add(operators[function], name)


def _relu(graph: Graph, layer: Layer, name: str) -> str:
    options = (layer.max_value, float(layer.negative_slope), float(layer.threshold))
    if options != (None, 0.0, 0.0):
        raise ValueError(f"layer {layer.name}: ReLU with options {options} is not supported")
    return graph.add("Relu", name)


def _dense(graph: Graph, layer: Layer, name: str) -> str:
    if len(layer.input.shape) != 2:
        raise ValueError(f"layer {layer.name}: Dense is supported on flat inputs only")
    inputs = [name, graph.constant(layer.kernel)]
    if layer.use_bias:
        inputs.append(graph.constant(layer.bias))
    return _activation(graph, layer, graph.add("Gemm", *inputs))


def _convolution(graph: Graph, layer: Layer, name: str) -> str:
    if set(layer.dilation_rate) != {1}:  # ONNX Runtime cannot pad dilated convolutions
        raise ValueError(f"layer {layer.name}: dilation is not supported")
    inputs = [name, graph.constant(np.transpose(layer.kernel, (3, 2, 0, 1)))]
    if layer.use_bias:
        inputs.append(graph.constant(layer.bias))
    name = graph.add(
        "Conv",
        *inputs,
        auto_pad={"same": "SAME_UPPER", "valid": "VALID"}[layer.padding],
        strides=layer.strides,
        group=layer.groups,
    )
    return _activation(graph, layer, name)


def _pooling(operator: str) -> Callable[[Graph, Layer, str], str]:
    def pool(graph: Graph, layer: Layer, name: str) -> str:
        padding = {"same": "SAME_UPPER", "valid": "VALID"}[layer.padding]
        size, strides = layer.pool_size, layer.strides
        return graph.add(operator, name, auto_pad=padding, kernel_shape=size, strides=strides)

    return pool


def _batch_normalization(graph: Graph, layer: Layer, name: str) -> str:
    if layer.axis not in (-1, len(layer.input.shape) - 1):
        raise ValueError(f"layer {layer.name}: only normalization of channels is supported")
    ones = np.ones(layer.moving_mean.shape)
    scale = layer.gamma if layer.scale else ones
    center = layer.beta if layer.center else 0 * ones
    arrays = (scale, center, layer.moving_mean, layer.moving_variance)
    constants = map(graph.constant, arrays)
    return graph.add("BatchNormalization", name, *constants, epsilon=layer.epsilon)


def _global_average(graph: Graph, layer: Layer, name: str) -> str:
    if layer.keepdims:
        raise ValueError(f"layer {layer.name}: keepdims is not supported")
    return graph.add("Flatten", graph.add("GlobalAveragePool", name))


LAYERS: dict[str, Callable[[Graph, Layer, str], str]] = {
    "Activation": _activation,
    "AveragePooling2D": _pooling("AveragePool"),
    "BatchNormalization": _batch_normalization,
    "Conv2D": _convolution,
    "Dense": _dense,
    "Flatten": _reshape,
    "GlobalAveragePooling2D": _global_average,
    "MaxPooling2D": _pooling("MaxPool"),
    "ReLU": _relu,
    "Reshape": _reshape,
}
TRAINING_ONLY = ("Random", "Dropout", "SpatialDropout", "Gaussian")  # prefixes of layer names


def from_keras(
    model: "keras.Sequential",
    offset: float,
    divisor: float,
    metadata: Mapping[str, Any],
    *,
    flip: bool,
) -> bytes:
    """Convert a trained network to the content of a model file.

    Args:
        model: Maps scaled images, float32, to probabilities, float32, shape (n, classes).
        offset: Gray level that maps to 0.
        divisor: Number of gray levels per unit of intensity.
        metadata: As returned by `describe`.
        flip: Whether to average the predictions for each image and its horizontal flip.

    Returns:
        The content of an `.onnx` file, as returned by `Graph.finish`.

    Raises:
        ValueError: A layer or one of its options is not supported.
    """
    graph = Graph(offset, divisor)
    name = graph.scaled
    if flip:
        width = graph.shape(2)
        backward = graph.add(
            "Slice", name, graph.shape(-1), graph.shape(-(2**31)), width, graph.shape(-1)
        )
        name = graph.add("Concat", name, backward, axis=0)
    if len(model.inputs[0].shape) == 4:
        name = graph.add("Transpose", name, perm=TO_CHANNELS_FIRST)
    for layer in model.layers:
        kind = type(layer).__name__
        if kind.startswith(TRAINING_ONLY):
            continue
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise ValueError(f"layer {layer.name}: only channels_last is supported")
        if kind not in LAYERS:
            raise ValueError(f"layer {layer.name}: {kind} has no conversion to ONNX")
        name = LAYERS[kind](graph, layer, name)
    if flip:
        both = graph.add("Reshape", name, graph.shape(2, -1, len(metadata["classes"])))
        name = graph.add("ReduceMean", both, axes=[0], keepdims=0)
    return graph.finish(name, metadata)
