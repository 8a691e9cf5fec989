"""The stage predict."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import fetch, normalize, predict
from stages.lib.files import read_json, write_arrays, write_json
from stages.lib.models.runtime import read_model
from stages.lib.stage import StageError
from tests.helpers import ROOT, Edit, small_mlp, tiny_arrays


@pytest.fixture
def model(project: Path) -> None:
    """The outputs of the stages before, with a model of random weights."""
    fetch.main()
    normalize.main()
    save_model()


def save_model(**changes: Any) -> None:  # noqa: ANN401
    dataset = read_json(predict.RAW / "dataset.json") | changes
    predict.MODEL.write_bytes(small_mlp(dataset, read_json(predict.NORMALIZED / "scaling.json")))


def predictions() -> dict[str, np.ndarray]:
    predict.main()
    with np.load("data/predictions.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.usefixtures("model")
def test_both_splits_are_predicted_from_raw_images() -> None:
    found, arrays, held = predictions(), tiny_arrays(), np.load(predict.NORMALIZED / "held_out.npy")
    published = {
        "validation": (arrays["train_images"][held], arrays["train_labels"][held]),
        "test": (arrays["test_images"], arrays["test_labels"]),
    }
    whole = read_model(predict.MODEL)
    for split, (images, labels) in published.items():
        np.testing.assert_array_equal(found.pop(f"{split}_labels"), labels)
        np.testing.assert_array_equal(found.pop(f"{split}_probabilities"), whole(images))
    assert {name: int(value) for name, value in found.items()} == {
        "parameters": 240,
        "multiply_adds": 9,
    }


@pytest.mark.usefixtures("model")
def test_predictions_do_not_depend_on_python_release() -> None:
    """ZIP64 headers declare a version that differs between releases; other headers declare 2.0."""
    predict.main()
    with zipfile.ZipFile(predict.PREDICTIONS) as archive:
        members = archive.infolist()
    assert {member.extract_version for member in members} == {20}
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}


def test_an_empty_validation_split_gives_empty_arrays(project: Path, edit: Edit) -> None:
    edit("normalize.validation", 0)
    fetch.main()
    normalize.main()
    save_model()
    found = predictions()
    assert found["validation_labels"].shape == (0,)
    assert found["validation_probabilities"].shape == (0, 3)
    assert found["test_probabilities"].shape == (30, 3)


@pytest.mark.usefixtures("model")
def test_chunks_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predictions()["test_probabilities"]
    monkeypatch.setattr(predict, "ROWS", 7)
    np.testing.assert_allclose(predictions()["test_probabilities"], whole, atol=1e-7)


@pytest.mark.usefixtures("model")
def test_second_run_writes_the_same_bytes() -> None:
    predict.main()
    first = predict.PREDICTIONS.read_bytes()
    predict.main()
    assert predict.PREDICTIONS.read_bytes() == first


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "tiny2"}, "dataset: expected tiny, .*, found tiny2"),
        ({"classes": ["a", "b", "c"]}, "classes: expected .*'bar'.*, found .*'c'."),
        (
            {"arrays": {"train_images": {"shape": [1, 5, 6]}}},
            r"image: expected \[6, 5\], .*, found \[5, 6\]",
        ),
    ],
)
def test_a_model_of_another_dataset_is_rejected(changes: dict[str, Any], reason: str) -> None:
    save_model(**changes)
    with pytest.raises(StageError, match=rf"^data/model.onnx: {reason}; run dvc repro"):
        predict.main()
    assert not predict.PREDICTIONS.exists()


@pytest.mark.usefixtures("model")
def test_damaged_model_leaves_no_predictions() -> None:
    whole = predict.MODEL.read_bytes()
    predict.MODEL.write_bytes(whole[:-100])
    with pytest.raises(StageError, match=r"^data/model.onnx: not a model file"):
        predict.main()
    assert not predict.PREDICTIONS.exists()
    predict.MODEL.write_bytes(whole)
    predict.main()
    assert predict.PREDICTIONS.exists()


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("name", ["test_images", "test_labels", "train_images", "train_labels"])
def test_modified_raw_arrays_are_rejected(name: str) -> None:
    np.save(predict.RAW / f"{name}.npy", 1 - tiny_arrays()[name])
    expected = rf"^data/raw/{name}.npy: expected .* as in data/raw/dataset.json"
    with pytest.raises(StageError, match=expected):
        predict.main()


@pytest.mark.usefixtures("model")
def test_modified_held_out_list_is_rejected() -> None:
    np.save(predict.NORMALIZED / "held_out.npy", np.array([0, 99]))
    with pytest.raises(StageError, match=r"^data/normalized/held_out.npy: expected"):
        predict.main()


@pytest.mark.usefixtures("model")
def test_predict_imports_no_training_library(project: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from stages import predict; predict.main();"
        "print({'tensorflow', 'keras', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(ROOT)]
    printed = subprocess.check_output(command, cwd=project, text=True)
    assert printed.splitlines()[-1] == "set()"


@pytest.mark.usefixtures("model")
def test_memory_does_not_grow_with_the_images(project: Path) -> None:
    """With 16 times the test images, little more than their probabilities is added."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from stages import predict;"
        "predict.main(); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (80_000, 1_280_000):
        images = np.zeros((count, 6, 5), np.uint8)
        labels = np.zeros(count, np.uint8)
        dataset = read_json(predict.RAW / "dataset.json")
        written = write_arrays(predict.RAW, {"test_images": images, "test_labels": labels})
        write_json(predict.RAW / "dataset.json", dataset | {"arrays": dataset["arrays"] | written})
        command = [sys.executable, "-c", code, str(ROOT)]
        printed = subprocess.check_output(command, cwd=project, text=True)
        peaks.append(int(printed.splitlines()[-1]) / 1024)
    probabilities = 1_200_000 * (3 * 4 + 1) / 2**20
    assert peaks[1] - peaks[0] < 2.5 * probabilities
