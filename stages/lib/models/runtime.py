"""Validate model files (data/model.onnx) and run them with ONNX Runtime.

This module imports neither TensorFlow, Keras nor scikit-learn.
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

from stages.lib.stage import StageError, is_printable

IR_VERSION, OPSET = 8, 17  # supported by ONNX Runtime 1.13 (2022) and later
THREADS = 2  # fixed, because results depend on how sums are split among threads
LARGEST_FILE = 2**31 - 1  # bytes, the limit of protobuf
LARGEST_IMAGE = 2**28  # values computed per image, including intermediate results
CHUNK = 2**25  # values computed per batch, 128 MB
MOST_ROWS, MOST_NODES, MOST_TEXT = 512, 10_000, 200
ADVICE = "run dvc repro to regenerate it"

# Model files may use these operators only: pure tensor functions without control flow, strings,
# random numbers or state.
# fmt: off
OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "Div", "Flatten",
    "Gather", "Gemm", "GlobalAveragePool", "MatMul", "Max", "MaxPool", "Mul", "Reciprocal",
    "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub",
    "Tanh", "TopK", "Transpose", "Unsqueeze",
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
        dataset: Name of the training dataset.
        title: Name of that dataset.
        classes: Names of the classes.
        image: Height and width in pixels, and 3 for color.
        background: Background level of the images, in [0, 255].
        kind: As in `model.kind` of params.yaml.
        parameters: Number of fitted parameters.
        multiply_adds: Number of multiply-adds per image.
        path: The file.
        rows: Number of images per batch, which limits memory.
        session: The ONNX Runtime session.
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
    rows: int
    session: onnxruntime.InferenceSession = field(repr=False, compare=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Predict images.

        Args:
            images: Gray levels or colors as published, shape (n, *image), uint8.

        Returns:
            Probabilities, shape (n, classes), float32, rows sum to 1.

        Raises:
            StageError: The model fails, or its outputs are not probabilities.
        """
        probabilities = np.empty((len(images), len(self.classes)), np.float32)
        for start in range(0, len(images), self.rows):
            rows = slice(start, start + self.rows)
            chunk = np.ascontiguousarray(images[rows])
            try:
                (part,) = self.session.run(["probabilities"], {"images": chunk})
            except _REJECTIONS as error:
                reason = " ".join(str(error).split())[:300]
                raise StageError(f"{self.path}: the model fails: {reason}; {ADVICE}") from error
            if part.shape != (len(chunk), len(self.classes)):
                raise StageError(
                    f"{self.path}: the model does not return one prediction per image; {ADVICE}"
                )
            probabilities[rows] = part
        sums = probabilities.sum(axis=1)
        if not ((probabilities >= 0).all() and (np.abs(sums - 1) < 1e-3).all()):
            raise StageError(f"{self.path}: the outputs are not probabilities; {ADVICE}")
        return probabilities


def read_model(path: Path) -> Model:
    """Read and validate an untrusted model file.

    Raises:
        StageError: The file is damaged, or `check_model` rejects it.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise StageError(f"{path}: {size:,} bytes exceed the limit for model files; {ADVICE}")
    content = path.read_bytes()
    try:
        fields = check_model(content)
        session = _session(content)
    except _REJECTIONS as error:
        reason = " ".join(str(error).split())[:300]
        raise StageError(f"{path}: not a model file of this project: {reason}; {ADVICE}") from error
    return Model(**fields, path=path, session=session)


def check_model(content: bytes) -> dict[str, Any]:
    """Validate the content of a model file without running it.

    Args:
        content: The content of an `.onnx` file.

    Returns:
        The fields of `Model` that are stored in the file, and `rows`.

    Raises:
        RejectedError: The model has operators, inputs or outputs that are not allowed, subgraphs,
            functions, external data, nodes that do not depend on the images, tensors larger than
            the file or the limits above, or invalid metadata. ONNX's parser and checker raise
            their own errors.
    """
    model = onnx.load_model_from_string(content)
    _check_structure(model)
    fields = _read_metadata(model)
    _check_values(model, fields)
    return fields | {"rows": _check_sizes(model)}


class RejectedError(Exception):
    """A model file that is not accepted."""


_REJECTIONS = (  # errors of the parser, ONNX's checker and ONNX Runtime, without a common base
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
    # Threads that spin between calls account for most of the CPU time of single predictions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal
    # A file that is valid both as ONNX and as ORT would be checked as ONNX and run as ORT.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _check_structure(model: onnx.ModelProto) -> None:
    graph = model.graph
    opsets = [(opset.domain, opset.version) for opset in model.opset_import]
    if (model.ir_version, opsets) != (IR_VERSION, [("", OPSET)]):
        found = f"IR {model.ir_version}, {opsets}"
        raise RejectedError(f"expected IR {IR_VERSION} and opset {OPSET} alone, found {found}")
    if model.functions or model.training_info or graph.sparse_initializer:
        raise RejectedError("functions, training information and sparse tensors are not allowed")
    if graph.value_info:  # shape inference would trust it
        raise RejectedError("declared shapes of intermediate results are not allowed")
    if len(graph.node) > MOST_NODES:
        raise RejectedError(f"{len(graph.node):,} nodes, at most {MOST_NODES:,} are allowed")
    live = {"images"}
    for node in graph.node:
        if live.isdisjoint(node.input):  # ONNX Runtime would run the node while loading the file
            raise RejectedError(f"{node.op_type} does not depend on the images")
        live.update(node.output)
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
        reason = str(error)[:MOST_TEXT]
        raise RejectedError(f"metadata: {type(error).__name__}: {reason}") from error
    classes, image = fields["classes"], fields["image"]
    if not 2 <= len(classes) <= 256:
        raise RejectedError(f"metadata: classes: expected 2 to 256, found {len(classes):,}")
    for text in (*classes, fields["dataset"], fields["title"], fields["kind"]):
        if not (isinstance(text, str) and is_printable(text) and len(text) <= MOST_TEXT):
            raise RejectedError(f"metadata: expected printable text, found {str(text)[:20]!r}")
    if len(image) not in (2, 3) or not all(type(size) is int and size > 0 for size in image):
        raise RejectedError("metadata: image: expected height and width, and 3 for color")
    limits = {"background": 256, "parameters": 2**63, "multiply_adds": 2**63}
    for name, limit in limits.items():
        if not 0 <= fields[name] < limit:
            raise RejectedError(f"metadata: {name}: expected a number from 0 below {limit}")
    return fields


def _check_values(model: onnx.ModelProto, fields: dict[str, Any]) -> None:
    """Check that the model has exactly the input and output that its metadata describe."""
    onnx.checker.check_model(model)
    expected = [
        ("images", TensorProto.UINT8, ["n", *fields["image"]]),
        ("probabilities", TensorProto.FLOAT, ["n", len(fields["classes"])]),
    ]
    values = [*model.graph.input, *model.graph.output]
    found = [(v.name, v.type.tensor_type.elem_type, _sizes(v)) for v in values]
    if found != expected or fields["image"][2:] not in ((), (3,)):
        raise RejectedError(f"expected inputs and outputs {expected}, found {str(found)[:100]}")
    if any(tensor.name == "images" for tensor in model.graph.initializer):
        raise RejectedError("images: expected an input without a default")


def _sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the sizes of a tensor: a number, the name of a variable size, or "?" if unknown."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]


def _check_sizes(model: onnx.ModelProto) -> int:
    """Limit the number of values computed, and return the number of images that fit `CHUNK`."""
    one = _count_values(model, 1)
    if one > LARGEST_IMAGE:
        raise RejectedError(f"{one:,} values per image, at most {LARGEST_IMAGE:,} are allowed")
    rows = max(1, min(MOST_ROWS, CHUNK // one))
    if _count_values(model, rows) > max(CHUNK, one):
        raise RejectedError("memory grows faster than the number of images")
    return rows


def _count_values(model: onnx.ModelProto, images: int) -> int:
    """Count the values that all nodes compute for a number of images, by shape inference."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = images
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    known = {value.name: _sizes(value) for value in (*inferred.value_info, *inferred.output)}
    total = 0
    for node in model.graph.node:
        for name in node.output:
            sizes = [size for size in known.get(name, ["?"]) if isinstance(size, int)]
            if len(sizes) < len(known.get(name, ["?"])):
                raise RejectedError(f"{node.op_type}: the shape of its output is not determined")
            total += math.prod(sizes)
    return total
