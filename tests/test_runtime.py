"""Model files: accepted ones and their predictions, and rejected ones."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.lib.models import runtime
from stages.lib.models.graph import Graph, describe
from stages.lib.models.runtime import Model, read_model
from stages.lib.stage import StageError
from tests.helpers import ROOT, described, small_mlp

CONTENT = small_mlp(*described())
IMAGES = np.random.default_rng(0).integers(0, 256, (1_300, 6, 5), dtype=np.uint8)


def read(content: bytes, folder: Path) -> Model:
    (folder / "model.onnx").write_bytes(content)
    return read_model(folder / "model.onnx")


def constants(content: bytes) -> list[np.ndarray]:
    tensors = onnx.load_model_from_string(content).graph.initializer
    return [numpy_helper.to_array(tensor) for tensor in tensors]


def test_model_agrees_with_numpy(tmp_path: Path) -> None:
    model = read(CONTENT, tmp_path)
    found = model(IMAGES)
    offset, divisor, first, second, bias = constants(CONTENT)
    hidden = np.maximum(((IMAGES - offset) / divisor).reshape(len(IMAGES), -1) @ first, 0)
    scores = np.exp(hidden @ second + bias)
    np.testing.assert_allclose(found, scores / scores.sum(axis=1, keepdims=True), atol=1e-6)
    assert found.dtype == np.float32
    assert (model.dataset, model.kind, model.image) == ("tiny", "mlp", (6, 5))
    assert (model.parameters, model.multiply_adds, model.background) == (240, 9, 0)


def test_any_memory_order_and_no_images_are_accepted(tmp_path: Path) -> None:
    model = read(CONTENT, tmp_path)
    np.testing.assert_array_equal(model(np.asfortranarray(IMAGES)), model(IMAGES))
    assert model(IMAGES[:0]).shape == (0, 3)


def test_chunks_do_not_change_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(CONTENT, tmp_path)(IMAGES)
    monkeypatch.setattr(runtime, "MOST_ROWS", 7)
    np.testing.assert_allclose(read(CONTENT, tmp_path)(IMAGES), whole, atol=1e-7)


def test_two_processes_predict_the_same_bytes(tmp_path: Path) -> None:
    read(CONTENT, tmp_path)
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import hashlib, sys, numpy; from pathlib import Path;"
        "from stages.lib.models.runtime import read_model;"
        "images = numpy.load(sys.argv[1] + '/images.npy');"
        "found = read_model(Path(sys.argv[1]) / 'model.onnx')(images);"
        "print(hashlib.sha256(found).hexdigest(),"
        " {'tensorflow', 'keras', 'sklearn'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    found = {subprocess.check_output(command, cwd=ROOT, text=True) for _ in range(2)}
    assert len(found) == 1
    assert found.pop().endswith(" set()\n")  # and imports no training library


Damage = Callable[[onnx.ModelProto], Any]


def node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in model.graph.node if n.op_type == operator)
    return found


def replace_tensor(model: onnx.ModelProto, array: np.ndarray) -> None:
    """Put an array in place of the first kernel."""
    kernel = model.graph.initializer[2]
    kernel.CopyFrom(numpy_helper.from_array(array, kernel.name))


def insert(model: onnx.ModelProto, operator: str, **options: Any) -> None:  # noqa: ANN401
    """Put a node between the input and its reader."""
    node(model, "Cast").input[0] = "inserted"
    made = helper.make_node(operator, ["images"], ["inserted"], **options)
    model.graph.node.insert(0, made)


def branch(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "branch", [], [value])
    insert(model, "If", then_branch=graph, else_branch=graph)


def hide_branch(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "branch", [], [value])
    node(model, "Relu").attribute.append(helper.make_attribute("body", graph))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[2]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def explode(model: onnx.ModelProto) -> None:
    """Double the features 40 times, and cut out as many as there were."""
    reader, name = node(model, "Gemm"), "Flatten_3"
    for i in range(40):
        made = helper.make_node("Concat", [name, name], [f"doubled_{i}"], axis=1)
        model.graph.node.insert(4 + i, made)
        name = f"doubled_{i}"
    for key, value in (("start", 0), ("end", 30), ("axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), key))
    made = helper.make_node("Slice", [name, "start", "end", "axis"], ["cut"])
    model.graph.node.insert(44, made)
    reader.input[0] = "cut"


def fold(model: onnx.ModelProto) -> None:
    """Multiply constants, which ONNX Runtime would do while it loads the file."""
    kernel = model.graph.initializer[2].name
    model.graph.node.insert(0, helper.make_node("Mul", [kernel, kernel], ["squares"]))


def square(model: onnx.ModelProto) -> None:
    """Relate every image to every two others: n x n x n x 30 numbers."""
    reader, graph = node(model, "Gemm"), model.graph
    axes = {"first": [1, 2], "second": [0, 2], "third": [0, 1]}
    for key, values in axes.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values), key))
    made = [helper.make_node("Unsqueeze", ["Flatten_3", key], [f"{key}_view"]) for key in axes]
    made += [
        helper.make_node("Mul", ["first_view", "second_view"], ["pairs"]),
        helper.make_node("Mul", ["pairs", "third_view"], ["triples"]),  # (n, n, n, 30)
        helper.make_node("ReduceSum", ["triples", "third"], ["sums"], keepdims=0),
    ]
    for place, each in enumerate(made):
        graph.node.insert(4 + place, each)
    reader.input[0] = "sums"


def pad(model: onnx.ModelProto) -> None:
    """Pad a convolution to 18,000 x 18,000 numbers an image, and cut it again."""
    reader, graph = node(model, "Gemm"), model.graph
    tensors = {
        "one": np.ones((1, 1, 1, 1), np.float32),
        "square": np.array([-1, 1, 6, 5]),
        "begin": np.array([9000, 9000]),
        "end": np.array([9006, 9005]),
        "axes": np.array([2, 3]),
        "flat": np.array([-1, 30]),
    }
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in tensors.items())
    made = [
        helper.make_node("Reshape", ["Flatten_3", "square"], ["squares"]),
        helper.make_node("Conv", ["squares", "one"], ["padded"], pads=[9000] * 4),
        helper.make_node("Slice", ["padded", "begin", "end", "axes"], ["cut"]),
        helper.make_node("Reshape", ["cut", "flat"], ["flattened"]),
    ]
    for place, each in enumerate(made):
        graph.node.insert(4 + place, each)
    reader.input[0] = "flattened"


def set_metadata(key: str, value: str) -> Damage:
    def change(model: onnx.ModelProto) -> None:
        next(prop for prop in model.metadata_props if prop.key == key).value = value

    return change


def reject_cases() -> dict[str, tuple[Damage, str]]:
    zeros = np.zeros
    return {
        "if": (branch, r"operator onnx\.If is not allowed"),
        "loop": (lambda m: insert(m, "Loop"), r"operator onnx\.Loop is not allowed"),
        "hidden subgraph": (hide_branch, "Relu: attribute body is not allowed"),
        "custom domain": (
            lambda m: setattr(node(m, "Relu"), "domain", "com.microsoft"),
            r"operator com\.microsoft\.Relu is not allowed",
        ),
        "another opset": (lambda m: m.opset_import.add(domain="x", version=1), "opset 17 alone"),
        "newer opset": (lambda m: setattr(m.opset_import[0], "version", 99), "opset 17 alone"),
        "newer format": (lambda m: setattr(m, "ir_version", 99), "expected IR 8"),
        "function": (lambda m: m.functions.add(name="f"), "functions, .* are not allowed"),
        "training": (lambda m: m.training_info.add(), "training information"),
        "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse tensors"),
        "external data": (external, "external data are not allowed"),
        "external location": (
            lambda m: m.graph.initializer[2].external_data.add(key="location", value="x"),
            "external data are not allowed",
        ),
        "declared gigabyte": (
            lambda m: m.graph.initializer[2].dims.__setitem__(0, 2**28),
            r"declares 8,589,934,592 bytes, has 960 bytes",
        ),
        "exploding graph": (explode, "[0-9,]+ values per image, at most"),
        "many nodes": (
            lambda m: m.graph.node.extend([node(m, "Relu")] * 10_000),
            "10,008 nodes, at most 10,000",
        ),
        "other shape": (lambda m: replace_tensor(m, zeros((30, 9), "f4")), "Gemm|[Dd]imension"),
        "other element type": (
            lambda m: replace_tensor(m, zeros((30, 8), "f8")),
            "element type 11 is not allowed",
        ),
        "text": (lambda m: replace_tensor(m, np.full((30, 8), "x")), "element type 8"),
        "cycle": (
            lambda m: node(m, "Cast").input.__setitem__(0, "Relu_5"),
            "Cast does not depend on the images",
        ),
        "no operator": (lambda m: setattr(node(m, "Relu"), "op_type", "Relv"), "onnx.Relv is not"),
        "input of another type": (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT),
            "expected inputs and outputs",
        ),
        "a second input": (
            lambda m: m.graph.input.append(
                helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])
            ),
            "expected inputs and outputs",
        ),
        "a second output": (
            lambda m: m.graph.output.append(
                helper.make_tensor_value_info("Relu_5", TensorProto.FLOAT, ["n", 8])
            ),
            "expected inputs and outputs",
        ),
        "no metadata": (lambda m: m.ClearField("metadata_props"), "metadata: KeyError"),
        "metadata no number": (set_metadata("parameters", "many"), "metadata: ValueError"),
        "metadata no list": (set_metadata("classes", "7"), "metadata: TypeError"),
        "metadata nested": (set_metadata("classes", "[" * 100_000), "metadata: RecursionError"),
        "other classes": (set_metadata("classes", '["a", "b"]'), "expected inputs and outputs"),
        "one class": (set_metadata("classes", '["a"]'), "expected 2 to 256, found 1"),
        "classes of no text": (set_metadata("classes", "[1, 2, 3]"), "expected printable text"),
        "other image": (set_metadata("image", "[5, 6]"), "expected inputs and outputs"),
        "four channels": (set_metadata("image", "[6, 5, 4]"), "expected inputs and outputs"),
        "flat image": (set_metadata("image", "[30]"), "expected inputs and outputs|3 for color"),
        "negative image": (set_metadata("image", "[-6, 5]"), "3 for color"),
        "empty image": (set_metadata("image", "[]"), "3 for color"),
        "image of booleans": (set_metadata("image", "[true, 30]"), "3 for color"),
        "terminal escapes": (set_metadata("kind", "\x1b[2J"), "expected printable text"),
        "long text": (set_metadata("title", "a" * 10**6), "expected printable text"),
        "huge number": (set_metadata("parameters", str(10**30)), "parameters: expected a number"),
        "negative number": (set_metadata("parameters", "-5"), "parameters: expected a number"),
        "background of no level": (set_metadata("background", "999"), "background: expected"),
        "declared shape": (
            lambda m: m.graph.value_info.append(
                helper.make_tensor_value_info("Relu_5", TensorProto.FLOAT, [1, 1])
            ),
            "declared shapes of intermediate results",
        ),
        "constants to compute": (fold, "Mul does not depend on the images"),
        "product of images": (square, "memory grows faster than the number of images"),
        "padding": (pad, "[0-9,]+ values per image, at most"),
        "default input": (
            lambda m: m.graph.initializer.append(
                numpy_helper.from_array(np.zeros((1, 6, 5), np.uint8), "images")
            ),
            "an input without a default|initializer",
        ),
        "output twice": (
            lambda m: m.graph.input.append(m.graph.output[0]),
            "expected inputs and outputs|SSA|already",
        ),
    }


@pytest.mark.parametrize("name", reject_cases())
def test_invalid_model_is_rejected_before_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line."""
    damage, reason = reject_cases()[name]
    model = onnx.load_model_from_string(CONTENT)
    damage(model)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was created")
    )
    with pytest.raises(StageError, match=reason) as caught:
        read(model.SerializeToString(), tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/model.onnx: not a model file of this project")


def test_truncated_file_is_rejected(tmp_path: Path) -> None:
    """It is cut at every seventh byte and at each of the last 100."""
    for size in {*range(0, len(CONTENT), 7), *range(len(CONTENT) - 100, len(CONTENT))}:
        with pytest.raises(StageError, match="not a model file of this project"):
            read(CONTENT[:size], tmp_path)


def test_file_is_read_in_the_format_that_was_checked(tmp_path: Path) -> None:
    """ONNX Runtime takes files with ORTM in bytes 4 to 8 for its own format, which is unchecked."""
    model = onnx.load_model_from_string(CONTENT)
    model.producer_name = "ORTM"
    content = model.SerializeToString(deterministic=True)
    assert content[4:8] == b"ORTM"
    np.testing.assert_array_equal(read(content, tmp_path)(IMAGES), read(CONTENT, tmp_path)(IMAGES))


def cut_rows(model: onnx.ModelProto) -> None:
    """Predict the first image only."""
    model.graph.node[-1].output[0] = "all"
    for key, value in (("start", 0), ("end", 1), ("axis", 0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), key))
    made = helper.make_node("Slice", ["all", "start", "end", "axis"], ["probabilities"])
    model.graph.node.append(made)


def gather_beyond(model: onnx.ModelProto) -> None:
    """Look up a class that does not exist."""
    model.graph.node[-1].output[0] = "all"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 99]), "beyond"))
    made = helper.make_node("Gather", ["all", "beyond"], ["probabilities"], axis=1)
    model.graph.node.append(made)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut_rows, "Inferred shape"), (gather_beyond, "model fails")],
)
def test_failing_model_is_rejected_in_one_line(tmp_path: Path, damage: Damage, reason: str) -> None:
    model = onnx.load_model_from_string(CONTENT)
    damage(model)
    with pytest.raises(StageError, match=reason) as caught:
        read(model.SerializeToString(), tmp_path)(IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>" * 2_000, b"\x89HDF\r\n\x1a\n", b"\0" * 99])
def test_file_of_another_format_is_rejected(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StageError, match="not a model file of this project"):
        read(content, tmp_path)


def test_file_beyond_protobuf_limit_is_rejected_unread(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(StageError, match="2,147,483,648 bytes exceed the limit for model files"):
        read_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("value", [2.0, -1.0, np.nan])
def test_output_without_probabilities_is_rejected(tmp_path: Path, value: float) -> None:
    dataset, _ = described()
    graph = Graph(0.0, 1.0)
    flat = graph.add("Flatten", graph.scaled)
    scores = graph.add("MatMul", flat, graph.constant(np.zeros((30, 3))))
    shifts = graph.constant([value, -value, 1])
    output = graph.finish(graph.add("Add", scores, shifts), describe(dataset, "mlp", 1, 1))
    with pytest.raises(StageError, match="the outputs are not probabilities"):
        read(output, tmp_path)(IMAGES)
