"""Model files of the real datasets agree with Keras and are reproducible."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.lib.files import read_json
from stages.lib.models import networks, training
from stages.lib.models.runtime import read_model
from stages.lib.params import ModelParams, read_params
from tests.helpers import Clone, clone_env, copy_files, set_params

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5  # of probabilities
# A short training, since parity does not depend on the accuracy.
SHORT = {
    "fetch.source": "packages",
    "normalize.validation": 50_000,  # which leaves 10,000 to train on
    "model.cnn.filters": [8],
    "train.epochs": 1,
}


@pytest.fixture(scope="module", params=["mnist", "fashion_mnist"])
def normalized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project with the normalized images of a real dataset."""
    for program in ("npm", "apt-get"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    folder = tmp_path_factory.mktemp(request.param)
    clone = copy_files(folder / "project", clone_env(folder, "project"))
    set_params(clone.path, {"dataset": request.param, **SHORT})
    for stage in ("fetch", "normalize"):
        clone.call("python", "-m", f"stages.{stage}")
    return clone


@pytest.mark.parametrize("kind", ["mlp", "linear", "cnn"])
def test_predictions_agree_with_keras(
    normalized: Clone, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(normalized.path, {"model.kind": kind})
    monkeypatch.chdir(normalized.path)
    params, dataset = read_params(), read_json(Path("data/raw/dataset.json"))
    built: list[Any] = []

    def build(*args: Any) -> Any:  # noqa: ANN401  # keras.Model, which has no types
        built.append(getattr(networks, kind)(*args))
        return built[0]

    folder, history = Path("data/normalized"), tmp_path / "history.csv"
    content = training.train(build, params.model, params.train, dataset, folder, "test", history)
    (tmp_path / "model.onnx").write_bytes(content)
    found = read_model(tmp_path / "model.onnx")(np.load("data/raw/test_images.npy"))
    images = np.load(folder / "test_images.npy")
    expected = by_keras(built[0], images, params.model, dataset)
    difference = np.abs(found - expected).max()
    print(f"{dataset['name']}, {kind}: largest difference {difference:.1e}")
    assert len(found) == 10_000
    assert difference < TOLERANCE
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def by_keras(
    model: Any,  # noqa: ANN401
    images: np.ndarray,
    params: ModelParams,
    dataset: Mapping[str, Any],
) -> np.ndarray:
    """Keras's probabilities, with test-time augmentation as in the model file."""
    probabilities: np.ndarray = model.predict(images, batch_size=1_000, verbose=0)
    if networks.flips(params, dataset):
        flipped = np.ascontiguousarray(images[:, :, ::-1])
        probabilities = (probabilities + model.predict(flipped, batch_size=1_000, verbose=0)) / 2
    return probabilities


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_two_processes_write_the_same_bytes(normalized: Clone, kind: str, tmp_path: Path) -> None:
    """They differ in path, hash seed and locale."""
    other = Clone(tmp_path / "zweite Übung", normalized.env)
    shutil.copytree(normalized.path, other.path)
    environments = ((normalized, "1", "C"), (other, "2", "C.UTF-8"))
    contents = []
    for clone, seed, locale in environments:
        set_params(clone.path, {"model.kind": kind})
        variables = (f"PYTHONHASHSEED={seed}", f"LC_ALL={locale}")
        clone.call("env", *variables, "python", "-m", "stages.train")
        contents.append((clone.path / "data/model.onnx").read_bytes())
    assert contents[0] == contents[1]
