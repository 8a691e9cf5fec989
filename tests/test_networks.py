"""The architectures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.lib.models import networks
from stages.lib.models.networks import augmentation, flips, import_keras, multiply_adds
from stages.lib.params import ModelParams
from stages.lib.stage import StageError
from tests.helpers import ROOT, described, read_yaml

keras = import_keras()
Network = Any  # keras.Model, which has no types


def build(params: ModelParams, *image: int, classes: int = 3, flip: bool = False) -> Network:
    """Return a model, by default for images of 6x5."""
    architecture = getattr(networks, params.kind)
    return architecture(params, *described(*image, classes=classes, flip=flip))


def model_of(
    kind: str, hidden: tuple[int, ...] = (8,), dropout: float = 0.0, l2: float = 0.0, seed: int = 0
) -> Network:
    """A model for images of 6x5 and 3 classes."""
    keras.utils.set_random_seed(seed)
    return build(params_of(kind, hidden, dropout, l2))


def params_of(
    kind: str, hidden: tuple[int, ...] = (8,), dropout: float = 0.0, l2: float = 0.0
) -> ModelParams:
    mlp, linear = {"hidden": [*hidden], "dropout": dropout}, {"l2": l2}
    return ModelParams.model_validate(
        read_yaml(ROOT / "params.yaml")["model"] | {"kind": kind, "mlp": mlp, "linear": linear}
    )


def kinds_of_layers(model: Network) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 6, 5), np.float32)


@pytest.mark.parametrize(
    ("kind", "parameters"), [("mlp", 784 * 1000 + 1000 + 1000 * 10 + 10), ("linear", 7_850)]
)
def test_parameter_counts_and_shapes_of_tutorial_sizes(kind: str, parameters: int) -> None:
    model = build(params_of(kind, (1000,)), 28, 28, classes=10)
    assert model.count_params() == parameters
    assert model.input_shape == (None, 28, 28)
    assert model.output_shape == (None, 10)


def test_tutorial_mlp_has_795_010_parameters() -> None:
    assert build(params_of("mlp", (1000,)), 28, 28, classes=10).count_params() == 795_010


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_probabilities_sum_to_1(kind: str) -> None:
    probabilities = model_of(kind).predict_on_batch(images(50) * 9)
    assert probabilities.shape == (50, 3)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_mlp_agrees_with_numpy() -> None:
    model = model_of("mlp", hidden=(8, 4))
    rows = images(5).reshape(5, -1)
    (w1, b1, w2, b2, w3, b3) = model.get_weights()
    scores = np.maximum(np.maximum(rows @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_on_batch(images(5)), expected, atol=1e-6)


def test_mlp_without_hidden_layers_has_one_layer() -> None:
    assert kinds_of_layers(model_of("mlp", hidden=())) == ["Flatten", "Dense"]


def test_dropout_follows_each_hidden_layer() -> None:
    model = model_of("mlp", hidden=(8, 4), dropout=0.25)
    assert kinds_of_layers(model) == ["Flatten", "Dense", "Dropout", "Dense", "Dropout", "Dense"]
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.25, 0.25]


def test_zero_dropout_adds_no_layer() -> None:
    assert kinds_of_layers(model_of("mlp", hidden=(8, 4))) == ["Flatten", "Dense", "Dense", "Dense"]


def test_dropout_is_inactive_in_predictions() -> None:
    dropping, plain = model_of("mlp", dropout=0.9), model_of("mlp")
    plain.set_weights(dropping.get_weights())
    np.testing.assert_array_equal(
        dropping.predict_on_batch(images(5)), plain.predict_on_batch(images(5))
    )


def test_l2_penalty_excludes_biases() -> None:
    model = model_of("linear", l2=0.5)
    weights, biases = model.get_weights()
    model.set_weights([weights, biases + 1])
    (penalty,) = model.losses
    assert float(penalty) == pytest.approx(0.5 * float((weights**2).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_zero_l2_adds_no_penalty(kind: str) -> None:
    assert model_of(kind).losses == []


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_seed_determines_the_weights(kind: str) -> None:
    first, again, other = (model_of(kind, seed=seed).get_weights()[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def cnn(**changes: object) -> ModelParams:
    content = read_yaml(ROOT / "params.yaml")["model"] | {"kind": "cnn"}
    content["cnn"] = content["cnn"] | {"filters": [4, 6]} | changes
    return ModelParams.model_validate(content)


def test_cnn_blocks_halve_the_image_rounding_up() -> None:
    model = build(cnn(depth=2))
    assert [layer.output.shape[1:] for layer in model.layers if "pooling" in layer.name] == [
        (3, 3, 4),
        (2, 2, 6),
    ]
    assert (
        kinds_of_layers(model).count("Conv2D")
        == kinds_of_layers(model).count("BatchNormalization")
        == 4
    )
    probabilities = model.predict_on_batch(images(20))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


NO_AUGMENTATION = {"shift": 0.0, "rotation": 0.0, "flip": False}


@pytest.mark.parametrize(
    ("changes", "flip", "layers"),
    [
        ({}, True, []),
        ({"shift": 1.0}, False, ["RandomTranslation"]),
        ({"rotation": 5.0}, False, ["RandomRotation"]),
        ({"flip": True}, True, ["RandomFlip"]),
        ({"flip": True}, False, []),
    ],
)
def test_augmentation_layers_follow_the_parameters(
    changes: dict[str, object], flip: bool, layers: list[str]
) -> None:
    """Images are flipped only if the dataset allows it."""
    model = build(cnn(**NO_AUGMENTATION | changes), flip=flip)
    assert [name for name in kinds_of_layers(model) if name.startswith("Random")] == layers


def test_translation_is_limited_to_the_parameter() -> None:
    """There is none outside training."""
    (layer,) = augmentation(
        cnn(**NO_AUGMENTATION | {"shift": 1.0}).cnn, (9, 7), flip=False, background=0.0
    )
    image = np.zeros((200, 9, 7, 1), np.float32)
    image[:, 4, 3] = 1
    translated = np.asarray(layer(image, training=True))[..., 0]
    rows, columns = (
        np.nonzero(translated.sum(axis=(0, 2)) > 1e-3)[0],
        np.nonzero(translated.sum(axis=(0, 1)) > 1e-3)[0],
    )
    assert (rows.tolist(), columns.tolist()) == ([3, 4, 5], [2, 3, 4])
    np.testing.assert_array_equal(layer(image, training=False), image)


def test_translation_fills_edges_with_background() -> None:
    (layer,) = augmentation(
        cnn(**NO_AUGMENTATION | {"shift": 3.0}).cnn, (6, 5), flip=False, background=-0.5
    )
    translated = np.asarray(layer(np.ones((50, 6, 5, 1), np.float32), training=True))
    assert translated.min() == pytest.approx(-0.5)
    assert translated.max() == pytest.approx(1)


def test_translation_beyond_the_image_is_rejected() -> None:
    build(cnn(**NO_AUGMENTATION | {"shift": 5.0}))
    with pytest.raises(
        StageError, match=r"^params.yaml: model.cnn.shift: expected at most 5 pixels, found 5.5$"
    ):
        build(cnn(**NO_AUGMENTATION | {"shift": 5.5}))


def test_random_flip_is_horizontal() -> None:
    (layer,) = augmentation(
        cnn(**NO_AUGMENTATION | {"flip": True}).cnn, (6, 5), flip=True, background=0.5
    )
    batch = images(40)[..., None]
    found = np.asarray(layer(batch, training=True))
    flipped = (found == batch[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 5 < flipped.sum() < 35
    assert (flipped | (found == batch).all(axis=(1, 2, 3))).all()


def test_multiply_adds_count_kernel_applications() -> None:
    """A convolution counts its kernel once per output position."""
    assert (
        multiply_adds(build(params_of("mlp", (1000,)), 28, 28, classes=10))
        == 784 * 1000 + 1000 * 10
    )
    assert multiply_adds(build(params_of("linear"), 28, 28, classes=10)) == 7_840
    first, second, last = 9 * 1 * 4 * 30, 9 * 4 * 6 * 9, 2 * 2 * 6 * 3
    assert multiply_adds(build(cnn())) == first + second + last


@pytest.mark.parametrize(("requested", "allowed"), [(True, True), (True, False), (False, True)])
def test_flips_require_parameter_and_dataset(requested: bool, allowed: bool) -> None:
    dataset, _ = described(flip=allowed)
    assert flips(cnn(flip=requested), dataset) == (requested and allowed)
    assert not flips(params_of("mlp"), dataset)


def test_color_images_keep_their_channels() -> None:
    assert build(params_of("mlp"), 6, 5, 3).layers[1].kernel.shape == (90, 8)
    model = build(cnn(), 6, 5, 3)
    assert "Reshape" not in kinds_of_layers(model)
    assert model.input_shape == (None, 6, 5, 3)


def test_oversized_mlp_is_rejected_with_advice() -> None:
    with pytest.raises(StageError, match=r"^params.yaml: model.mlp: 120,.* use model.kind=cnn"):
        build(params_of("mlp", (10_000,)), 200, 60)


HOSTILE = {"backend": "jax", "floatx": "float64", "image_data_format": "channels_first"}


def test_user_keras_settings_are_ignored(
    tmp_path: Path,
) -> None:
    """KERAS_BACKEND or an old ~/.keras/keras.json could fail or change the weights silently."""
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(json.dumps(HOSTILE))
    code = (
        "from stages.lib.models.networks import import_keras; keras = import_keras();"
        "print(keras.backend.backend(), keras.config.floatx(), keras.config.image_data_format(),"
        " keras.config.max_epochs())"
    )
    hostile = {"HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    hostile |= {"KERAS_MAX_EPOCHS": "1", "KERAS_NNX_ENABLED": "true"}
    assert run_python(code, **hostile) == (0, "tensorflow float32 channels_last None\n", "")
    assert json.loads((tmp_path / ".keras/keras.json").read_text()) == HOSTILE


def test_importing_tensorflow_prints_nothing() -> None:
    """Later output is printed."""
    code = (
        "from stages.lib.models.networks import import_keras;"
        "import_keras().ops.add(1, 1); raise SystemExit('printed')"
    )
    assert run_python(code) == (1, "", "printed\n")


def run_python(code: str, **variables: str) -> tuple[int, str, str]:
    """Run a program in a separate process and return its exit code, stdout and stderr."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    command, env = [sys.executable, "-c", code], kept | variables
    ended = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    return ended.returncode, ended.stdout, ended.stderr
