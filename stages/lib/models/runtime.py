"""Model files as callables: data/model.onnx in ONNX Runtime, checked before anything runs it.

Imports neither TensorFlow, Keras nor scikit-learn.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from stages.lib.stage import StageError

IR_VERSION, OPSET = 8, 17  # of 2022: ONNX Runtime 1.13 and later read them
THREADS = 2  # fixed, since sums are split among threads: the same bytes whatever the machine has
LARGEST_FILE = 2**31 - 1  # bytes, the limit of protobuf
LARGEST_TENSOR = 2**26  # elements of an intermediate result, for one image
MOST_NODES = 10_000
PIXELS_AT_ONCE = 2**18  # pixels that are predicted together, so that memory stays flat
ADVICE = "dvc repro writes it again"

# What a model file may consist of: pure functions of tensors, without control flow, strings,
# random numbers or state.
# fmt: off
OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "Div", "Flatten", "Gather",
    "Gemm", "GlobalAveragePool", "MatMul", "Max", "MaxPool", "Mul", "Reciprocal", "ReduceMean",
    "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub", "Tanh", "TopK",
    "Transpose", "Unsqueeze",
})
# fmt: on
ELEMENT_SIZES = {TensorProto.FLOAT: 4, TensorProto.INT64: 8, TensorProto.UINT8: 1}
ATTRIBUTES = {
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.INTS,
}


@dataclass(frozen=True)
class Model:
    """A trained classifier.

    Attributes:
        dataset: Key in datasets.yaml of the images that it was trained on.
        title: Name of that dataset.
        classes: Names of the classes.
        image: Height and width in pixels, and 3 for color.
        background: Gray level around what the images show, in [0, 255].
        kind: As in `model.kind` of params.yaml.
        parameters: Number of stored numbers that training chose.
        multiply_adds: Of the prediction of one image.
    """

    dataset: str
    title: str
    classes: tuple[str, ...]
    image: tuple[int, ...]
    background: int
    kind: str
    parameters: int
    multiply_adds: int
    path: Path
    session: onnxruntime.InferenceSession = field(repr=False, compare=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Predict images.

        Args:
            images: Gray levels or colors as published, shape (n, *image), uint8.

        Returns:
            Probabilities, shape (n, classes), float32, rows sum to 1.

        Raises:
            StageError: The output is no probability distribution.
        """
        rows = max(1, min(512, PIXELS_AT_ONCE // math.prod(self.image)))
        parts = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), rows):
            chunk = np.ascontiguousarray(images[start : start + rows])
            parts += self.session.run(None, {"images": chunk})
        probabilities = np.concatenate(parts)
        sums = probabilities.sum(axis=1)
        if not ((probabilities >= 0).all() and (np.abs(sums - 1) < 1e-3).all()):
            raise StageError(f"{self.path}: the outputs are not probabilities; {ADVICE}")
        return probabilities


def read_model(path: Path) -> Model:
    """Read a model file; it is data from anywhere, and is checked before it is run.

    Args:
        path: An ONNX file as from `graph`.

    Returns:
        The model.

    Raises:
        StageError: The file is damaged, or holds anything but a classifier of images: other
            operators, subgraphs, functions, external data, other inputs or outputs, tensors
            that are larger than the file or than `LARGEST_TENSOR`, or no metadata.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise StageError(f"{path}: {size:,} bytes are more than a model file has; {ADVICE}")
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
        _check_structure(model)
        fields = _read_metadata(model)
        _check_shapes(model, fields)
        session = _session(content)
    except _REJECTIONS as error:
        reason = " ".join(str(error).split())[:300]
        raise StageError(f"{path}: not a model file of this project: {reason}; {ADVICE}") from error
    return Model(**fields, path=path, session=session)


class RejectedError(Exception):
    """Why a file is not accepted."""


_REJECTIONS = (  # of the parser, of ONNX's checker, and of ONNX Runtime, which share no base class
    RejectedError,
    DecodeError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _check_structure(model: onnx.ModelProto) -> None:
    graph = model.graph
    opsets = [(opset.domain, opset.version) for opset in model.opset_import]
    if (model.ir_version, opsets) != (IR_VERSION, [("", OPSET)]):
        found = f"IR {model.ir_version}, {opsets}"
        raise RejectedError(f"expected IR {IR_VERSION} and opset {OPSET} alone, found {found}")
    if model.functions or model.training_info or graph.sparse_initializer:
        raise RejectedError("functions, training information and sparse tensors are not allowed")
    if len(graph.node) > MOST_NODES:
        raise RejectedError(f"{len(graph.node):,} nodes, at most {MOST_NODES:,} are allowed")
    for node in graph.node:
        if node.domain or node.op_type not in OPERATORS:
            raise RejectedError(f"operator {node.domain or 'onnx'}.{node.op_type} is not allowed")
        for attribute in node.attribute:
            if attribute.type not in ATTRIBUTES:
                raise RejectedError(f"{node.op_type}: attribute {attribute.name} is not allowed")
    for tensor in graph.initializer:
        if tensor.data_location or tensor.external_data:
            raise RejectedError(f"{tensor.name}: external data are not allowed")
        if tensor.data_type not in ELEMENT_SIZES:
            raise RejectedError(f"{tensor.name}: element type {tensor.data_type} is not allowed")
        declared = math.prod(tensor.dims) * ELEMENT_SIZES[tensor.data_type]
        if declared != len(tensor.raw_data):
            found = f"{len(tensor.raw_data):,} bytes"
            raise RejectedError(f"{tensor.name}: declares {declared:,} bytes, has {found}")


def _read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    texts = {prop.key: prop.value for prop in model.metadata_props}
    try:
        fields: dict[str, Any] = {name: texts[name] for name in ("dataset", "title", "kind")}
        fields |= {name: int(texts[name]) for name in ("background", "parameters", "multiply_adds")}
        fields |= {name: tuple(json.loads(texts[name])) for name in ("classes", "image")}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RejectedError(f"metadata: {type(error).__name__}: {error}") from error
    classes, image = fields["classes"], fields["image"]
    if not (2 <= len(classes) <= 256 and all(isinstance(name, str) for name in classes)):
        raise RejectedError("metadata: classes: expected the names of 2 to 256 classes")
    if not (all(isinstance(size, int) and size > 0 for size in image) and image[2:] in ((), (3,))):
        raise RejectedError(
            f"metadata: image: expected height, width and 3 for color, found {image}"
        )
    return fields


def _check_shapes(model: onnx.ModelProto, fields: dict[str, Any]) -> None:
    """Check inputs and outputs, and the size of every tensor that one image leads to."""
    onnx.checker.check_model(model)
    expected = {
        "images": (TensorProto.UINT8, ["n", *fields["image"]]),
        "probabilities": (TensorProto.FLOAT, ["n", len(fields["classes"])]),
    }
    values = [*model.graph.input, *model.graph.output]
    if (found := {value.name: _declared(value) for value in values}) != expected:
        raise RejectedError(f"expected inputs and outputs {expected}, found {found}")
    for value in values:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    known = {v.name: _declared(v)[1] for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph.node:
        for name in node.output:
            sizes = [size for size in known.get(name, [""]) if isinstance(size, int)]
            if len(sizes) < len(known.get(name, [""])):
                raise RejectedError(f"{node.op_type}: the shape of its output is not determined")
            if math.prod(sizes) > LARGEST_TENSOR:
                raise RejectedError(f"{node.op_type}: {math.prod(sizes):,} numbers for one image")


def _declared(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
