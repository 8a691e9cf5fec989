"""Trained models as ONNX graphs, against Keras and against ONNX's reference evaluator."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from stages.lib.models import networks
from stages.lib.models.graph import Graph, describe, from_keras
from stages.lib.models.networks import flips, import_keras
from stages.lib.models.runtime import read_model
from stages.lib.params import ModelParams
from tests.helpers import ROOT, described, read_yaml

keras = import_keras()
Network = Any  # keras.Model, which has no types
layers = keras.layers
TOLERANCE = 1e-5
CASES = 210


def perturb(model: Network, rng: np.random.Generator) -> None:
    """Perturb all weights, including running means and variances."""
    for variable in model.weights:
        perturbed = np.asarray(variable) + rng.normal(0, 0.3, variable.shape)
        variable.assign(np.abs(perturbed) + 0.1 if "variance" in variable.path else perturbed)


def converted(
    model: Network, dataset: dict[str, Any], scaling: dict[str, Any], *, flip: bool, path: Path
) -> tuple[onnx.ModelProto, Any]:
    """Return the model file, parsed and as a callable."""
    metadata = describe(dataset, model.name, model.count_params(), 1)
    content = from_keras(model, scaling["offset"], scaling["divisor"], metadata, flip=flip)
    path.write_bytes(content)
    return onnx.load_model_from_string(content), read_model(path)


def by_keras(  # the type of a Keras call
    model: Network, images: np.ndarray, scaling: dict[str, Any], *, flip: bool
) -> Any:  # noqa: ANN401
    offset, divisor = np.float32(scaling["offset"]), np.float32(scaling["divisor"])
    scaled = (images.astype(np.float32) - offset) / divisor
    probabilities = np.asarray(model(scaled, training=False))
    if flip:
        flipped = np.ascontiguousarray(scaled[:, :, ::-1])
        probabilities = (probabilities + np.asarray(model(flipped, training=False))) / 2
    return probabilities


def expect_parity(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal within the tolerance; equal classes unless the top two are closer than that."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    first, second = np.sort(expected, axis=1)[:, ::-1][:, :2].T
    clear = first - second > TOLERANCE
    np.testing.assert_array_equal(found.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


def random_case(rng: np.random.Generator) -> tuple[ModelParams, tuple[int, ...], int]:
    """A kind of the pipeline with random sizes, for images of a random shape."""
    content = read_yaml(ROOT / "params.yaml")["model"]
    content["kind"] = str(rng.choice(["mlp", "linear", "cnn"]))
    content["mlp"] = {"hidden": rng.integers(1, 9, rng.integers(0, 3)).tolist(), "dropout": 0.3}
    content["linear"] = {"l2": float(rng.integers(2))}
    content["cnn"] |= {
        "filters": rng.integers(1, 6, rng.integers(1, 3)).tolist(),
        "depth": int(rng.integers(1, 3)),
        "rotation": 5.0,
        "flip": bool(rng.integers(2)),
    }
    image = rng.integers(1, 12, 2).tolist() + [3] * int(rng.integers(2))
    return ModelParams.model_validate(content), tuple(image), int(rng.integers(2, 6))


def test_random_models_agree_with_keras_and_reference(tmp_path: Path) -> None:
    """Kinds, architectures, image shapes, colors, scalings, penalties and flips vary."""
    kinds = set()
    for case in range(CASES):
        rng = np.random.default_rng(case)
        params, image, classes = random_case(rng)
        if params.kind == "cnn":  # the augmentation translates by a pixel
            image = tuple(max(size, 2) for size in image)
        dataset, scaling = described(*image, classes=classes, flip=bool(rng.integers(2)))
        if rng.integers(2):  # as with normalize.method: standardize
            scaling = {"offset": float(rng.uniform(0, 99)), "divisor": float(rng.uniform(20, 99))}
        model = getattr(networks, params.kind)(params, dataset, scaling)
        perturb(model, rng)
        flip = flips(params, dataset)
        graph, callable_ = converted(model, dataset, scaling, flip=flip, path=tmp_path / "m.onnx")
        images = rng.integers(0, 256, (9, *image), dtype=np.uint8)
        expected = by_keras(model, images, scaling, flip=flip)
        expect_parity(callable_(images), expected)
        evaluator: Any = ReferenceEvaluator(graph)
        reference = evaluator.run(None, {"images": images})[0]
        expect_parity(reference, expected)
        kinds.add((params.kind, flip, len(image)))
    assert len(kinds) == 2 + 2 + 4  # all combinations occurred


STACKS: dict[str, Any] = {
    "strides": lambda: [layers.Conv2D(3, 2, strides=2, activation="sigmoid"), layers.Flatten()],
    "groups": lambda: [layers.Conv2D(6, 3, groups=3, activation="tanh"), layers.Flatten()],
    "average": lambda: [layers.AveragePooling2D(2, padding="same"), layers.Flatten()],
    "overlap": lambda: [layers.MaxPooling2D(3, strides=2), layers.Flatten()],
    "global": lambda: [layers.Conv2D(5, 3), layers.GlobalAveragePooling2D()],
    "normalized": lambda: [
        layers.BatchNormalization(center=False, epsilon=0.1),
        layers.Flatten(),
        layers.Dense(7, use_bias=False),
        layers.BatchNormalization(scale=False),
        layers.Activation("relu"),
        layers.GaussianNoise(0.1),
        layers.GaussianDropout(0.2),
    ],
    "reshaped": lambda: [layers.Reshape((8, 21)), layers.Reshape((7, 8, 3)), layers.Flatten()],
}


@pytest.mark.parametrize("name", STACKS)
def test_new_architectures_of_known_layers_convert(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset, scaling = described(8, 7, 3)
    output = layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((8, 7, 3)), *STACKS[name](), output], name="stack")
    perturb(model, rng)
    _, callable_ = converted(model, dataset, scaling, flip=True, path=tmp_path / "m.onnx")
    images = rng.integers(0, 256, (20, 8, 7, 3), dtype=np.uint8)
    expect_parity(callable_(images), by_keras(model, images, scaling, flip=True))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.UpSampling2D(2), "UpSampling2D has no conversion to ONNX"),
        (lambda: layers.ReLU(max_value=6), "ReLU with options"),
        (lambda: layers.Activation("gelu"), "no ONNX operator for activation gelu"),
        (lambda: layers.BatchNormalization(axis=1), "only normalization of channels"),
        (lambda: layers.Dense(4), "flat inputs only"),
        (lambda: layers.Conv2D(3, 3, dilation_rate=2), "dilation is not supported"),
        (lambda: layers.GlobalAveragePooling2D(keepdims=True), "keepdims is not supported"),
    ],
)
def test_unknown_layer_is_rejected_by_name(layer: Any, reason: str) -> None:  # noqa: ANN401
    stack = [keras.Input((6, 5, 3)), layer(), layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential(stack, name="m")
    dataset, _ = described(6, 5, 3)
    with pytest.raises(ValueError, match=rf"^layer \w+: .*{reason}"):
        from_keras(model, 0.0, 255.0, describe(dataset, "m", 1, 1), flip=False)


def test_operator_unknown_to_the_runtime_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^Loop is not among the operators"):
        Graph(0.0, 1.0).add("Loop", "images")


def test_augmentation_and_dropout_leave_no_node(tmp_path: Path) -> None:
    dataset, scaling = described(flip=True)
    params = ModelParams.model_validate(read_yaml(ROOT / "params.yaml")["model"] | {"kind": "cnn"})
    model = networks.cnn(params, dataset, scaling)
    names = {type(layer).__name__ for layer in model.layers}
    assert names >= {"RandomTranslation", "RandomFlip", "Dropout"}
    graph, _ = converted(model, dataset, scaling, flip=False, path=tmp_path / "m.onnx")
    operators = {node.op_type for node in graph.graph.node}
    block = {"Conv", "MaxPool", "BatchNormalization", "Relu"}
    assert operators == block | {"Cast", "Sub", "Div", "Reshape", "Transpose", "Gemm", "Softmax"}


CODE = """
import hashlib
from stages.lib.models import networks
from stages.lib.models.graph import describe, from_keras
from stages.lib.params import read_params
from tests.helpers import described
networks.import_keras().utils.set_random_seed(0)
dataset, scaling = described(flip=True)
params = read_params().model.model_copy(update={"kind": "cnn"})
model = networks.cnn(params, dataset, scaling)
content = from_keras(model, 0.0, 255.0, describe(dataset, "cnn", 1, 2), flip=True)
print(hashlib.sha256(content).hexdigest(), b"2026" in content, b"/" in content)
"""


def test_equal_weights_give_equal_bytes() -> None:
    """Hash seed and locale have no effect."""
    found = set()
    for seed, language in (("1", "C"), ("2", "tr_TR.UTF-8")):
        env = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": language}
        command = [sys.executable, "-c", CODE]
        found.add(subprocess.check_output(command, cwd=ROOT, env=env, text=True))
    assert len(found) == 1


def test_model_file_describes_only_the_model(tmp_path: Path) -> None:
    """A date, path, host or library version would differ between equal models."""
    dataset, scaling = described(classes=2)
    model = keras.Sequential(
        [keras.Input((6, 5)), layers.Flatten(), layers.Dense(2, activation="softmax")], name="m"
    )
    graph, callable_ = converted(model, dataset, scaling, flip=False, path=tmp_path / "m.onnx")
    assert {prop.key: prop.value for prop in graph.metadata_props} == {
        "dataset": "tiny",
        "title": "Tiny",
        "classes": '["class 0", "class 1"]',
        "image": "[6, 5]",
        "background": "0",
        "kind": "m",
        "parameters": "62",
        "multiply_adds": "1",
    }
    fields = ("producer_name", "producer_version", "domain", "doc_string", "model_version")
    assert not any(getattr(graph, name) for name in fields)
    assert (graph.ir_version, graph.opset_import[0].version) == (8, 17)
    assert callable_.classes == ("class 0", "class 1")
    assert (callable_.image, callable_.background, callable_.parameters) == ((6, 5), 0, 62)
