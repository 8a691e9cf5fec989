"""The stage predict."""

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from stages import fetch, normalize, predict
from stages.lib.models.networks import build, keras
from stages.lib.params import read_params
from stages.lib.stage import StageError
from tests.conftest import scaling

Edit = Callable[[str, object], None]


@pytest.fixture
def weights(project: Path) -> list[np.ndarray]:
    """The weights of a model of 8 hidden units, saved where the stage reads them, beside the normalized images."""
    fetch.main()
    normalize.main()
    return save_weights()


def save_weights() -> list[np.ndarray]:
    keras.utils.set_random_seed(5)
    model = build(read_params().model, scaling())
    model.set_weights([array + 0.1 for array in model.get_weights()])
    model.save_weights("data/model.weights.h5")
    saved: list[np.ndarray] = model.get_weights()
    return saved


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def predictions() -> dict[str, np.ndarray]:
    with np.load("data/predictions.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_probabilities_are_those_that_the_saved_weights_give(weights: list[np.ndarray]) -> None:
    predict.main()
    found = predictions()
    w1, b1, w2, b2 = weights
    for split, count in (("validation", 18), ("test", 30)):
        rows = np.load(f"data/normalized/{split}_images.npy").reshape(count, -1)
        probabilities = found[f"{split}_probabilities"]
        np.testing.assert_allclose(
            probabilities, softmax(np.maximum(rows @ w1 + b1, 0) @ w2 + b2), atol=1e-6
        )
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert probabilities.dtype == np.float32


def test_labels_are_those_of_the_images_and_the_parameters_are_counted(
    weights: list[np.ndarray],
) -> None:
    predict.main()
    found = predictions()
    assert {*found} == {
        "parameters",
        "multiply_adds",
        "validation_labels",
        "validation_probabilities",
        "test_labels",
        "test_probabilities",
    }
    for split in ("validation", "test"):
        np.testing.assert_array_equal(
            found[f"{split}_labels"], np.load(f"data/normalized/{split}_labels.npy")
        )
    assert found["parameters"] == sum(array.size for array in weights) == 275
    assert found["multiply_adds"] == 30 * 8 + 8 * 3


def test_no_validation_split_gives_empty_arrays_of_the_usual_shapes(
    project: Path, edit: Edit
) -> None:
    edit("normalize.validation", 0)
    edit("model.kind", "linear")
    fetch.main()
    normalize.main()
    weights, biases = save_weights()
    predict.main()
    found = predictions()
    assert found["validation_labels"].shape == (0,)
    assert found["validation_probabilities"].shape == (0, 3)
    rows = np.load("data/normalized/test_images.npy").reshape(30, -1)
    np.testing.assert_allclose(
        found["test_probabilities"], softmax(rows @ weights + biases), atol=1e-6
    )


def test_images_of_more_than_one_chunk_are_all_predicted_in_their_order(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((5_000, 2, 1), np.float32)
    np.save(tmp_path / "images.npy", images)
    model = keras.Sequential([keras.Input((2, 1)), keras.layers.Flatten(), keras.layers.Softmax()])
    np.testing.assert_allclose(
        predict.probabilities(model.predict_on_batch, tmp_path / "images.npy", 2),
        softmax(images.reshape(5_000, 2)),
        atol=1e-6,
    )


def test_a_second_run_writes_the_same_bytes(weights: list[np.ndarray]) -> None:
    predict.main()
    first = Path("data/predictions.npz").read_bytes()
    predict.main()
    assert Path("data/predictions.npz").read_bytes() == first


Damage = Callable[[h5py.File], object]
KERNEL = "layers/dense/vars/0"


def declared(file: h5py.File, shape: tuple[int, ...], **options: object) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, shape, "float32", **options)


def instead(file: h5py.File, link: object) -> None:
    del file[KERNEL]
    file[KERNEL] = link


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(
            lambda file: declared(file, (2**28,)),
            r"found float32 of shape \(268435456,\)",
            id="gigabyte",
        ),
        pytest.param(
            lambda file: declared(file, (30, 9)),
            r"found float32 of shape \(30, 9\)",
            id="other-shape",
        ),
        pytest.param(
            lambda file: file.move(KERNEL, "layers/dense/vars/2"), "found nothing", id="other-name"
        ),
        pytest.param(
            lambda file: file.create_dataset("code", (3,)),
            "nothing, found float32 .*",
            id="one-more",
        ),
        pytest.param(
            lambda file: file.create_group("vars/more"), "nothing, found Group", id="one-more-group"
        ),
        pytest.param(lambda file: file.clear(), "found nothing", id="nothing"),
        pytest.param(
            lambda file: declared(file, (30, 8), chunks=(30, 8), compression="gzip"),
            "found .* in pieces",
            id="packed",
        ),
        pytest.param(
            lambda file: declared(file, (30, 8), external=[("/etc/passwd", 0, 960)]),
            "found .* stored elsewhere or in pieces",
            id="external-storage",
        ),
        pytest.param(
            lambda file: instead(file, h5py.ExternalLink("other.h5", "/a")),
            "found ExternalLink",
            id="external-link",
        ),
        pytest.param(
            lambda file: instead(file, h5py.SoftLink("/vars")), "found SoftLink", id="soft-link"
        ),
        pytest.param(
            lambda file: instead(file, np.zeros((30, 8))),
            "found float64 of shape .*",
            id="other-dtype",
        ),
        pytest.param(lambda file: instead(file, file["/"]), "found Group", id="loop"),
    ],
)
def test_a_weights_file_that_declares_anything_else_is_refused_before_it_is_loaded(
    weights: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, damage: Damage, found: str
) -> None:
    whole = predict.WEIGHTS.read_bytes()
    with h5py.File(predict.WEIGHTS, "r+") as file:
        damage(file)
    with monkeypatch.context() as watched:
        watched.setattr(keras.Model, "load_weights", lambda *_: pytest.fail("was loaded"))
        refused(rf"expected weights of model\.mlp in params\.yaml, '\S+' as .*{found}; dvc repro")
    predict.WEIGHTS.write_bytes(whole)
    predict.main()
    assert predict.PREDICTIONS.exists()


@pytest.mark.parametrize("size", [0, 10, 2000, 16_000])
def test_a_weights_file_that_was_cut_off_is_refused(weights: list[np.ndarray], size: int) -> None:
    assert len(predict.WEIGHTS.read_bytes()) > size
    predict.WEIGHTS.write_bytes(predict.WEIGHTS.read_bytes()[:size])
    refused("expected a whole HDF5 file, found: .*; dvc repro")


def test_a_page_in_place_of_weights_is_refused(weights: list[np.ndarray]) -> None:
    predict.WEIGHTS.write_text("<!DOCTYPE html>" * 2000)
    refused("expected a whole HDF5 file, found: .*signature.*; dvc repro")


@pytest.mark.parametrize(
    ("key", "value"), [("model.mlp.hidden", [9]), ("model.mlp.hidden", [8, 8])]
)
def test_weights_of_another_shape_are_refused(
    weights: list[np.ndarray], edit: Edit, key: str, value: object
) -> None:
    edit(key, value)
    refused(
        r"expected weights of model\.mlp in params\.yaml, 'layers/\S+' as .*, found .*; dvc repro"
    )


def refused(reason: str) -> None:
    """The stage ends with one line, and nothing is written."""
    with pytest.raises(StageError) as caught:
        predict.main()
    assert re.fullmatch(rf"data/model\.weights\.h5: {reason}", str(caught.value)), caught.value
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "model.weights.h5",
        "normalized",
        "raw",
    ]


@pytest.mark.parametrize(
    "name", ["test_images", "test_labels", "validation_images", "validation_labels"]
)
def test_arrays_that_normalize_did_not_write_are_refused(
    weights: list[np.ndarray], name: str
) -> None:
    path = Path(f"data/normalized/{name}.npy")
    np.save(path, 1 - np.load(path))
    with pytest.raises(
        StageError, match=rf"^{path}: expected .*, as data/normalized/scaling.json has it"
    ):
        predict.main()
    assert not Path("data/predictions.npz").exists()
