"""Label errors of the training split, found by out-of-fold predictions."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import fetch, normalize
from stages.lib.files import read_json, write_arrays, write_json
from stages.lib.stage import StageError
from tests.helpers import Edit
from tools import label_errors

FLIPPED = [3, 41, 77]


@pytest.fixture
def flipped(project: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny dataset with three label errors in training, and the outputs of the stages."""
    edit("model.pca_knn", {"components": 4, "neighbors": 3})
    edit("model.kind", "pca_knn")
    fetch.main()
    labels = np.load("data/raw/train_labels.npy")
    labels[FLIPPED] = (labels[FLIPPED] + 1) % 3
    dataset = read_json(Path("data/raw/dataset.json"))
    dataset["arrays"] |= write_arrays(Path("data/raw"), {"train_labels": labels})
    write_json(Path("data/raw/dataset.json"), dataset)
    normalize.main()
    monkeypatch.setattr(sys, "argv", ["label_errors", "--folds", "3"])
    return project


def test_label_errors_rank_first(flipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Indexes are those of the published training set."""
    true = np.load("data/raw/train_labels.npy")[FLIPPED].astype(int) - 1
    label_errors.main()
    table = pd.read_csv("reports/train_label_errors.csv")
    assert set(table["index"][:3]) == set(FLIPPED)
    assert [*table.sort_values("index").query("index in @FLIPPED")["predicted"]] == [*(true % 3)]
    assert len(table) == 3
    assert table["label_quality"].is_monotonic_increasing
    assert Path("reports/train_label_errors.png").stat().st_size > 5_000
    assert f"3-fold cross-validation: accuracy {87 / 90:.4f}" in capsys.readouterr().out


def test_network_finds_label_errors(flipped: Path, edit: Edit) -> None:
    edit("model.kind", "mlp")
    edit("train.epochs", 15)
    edit("train.learning_rate", 0.02)
    label_errors.main()
    assert set(pd.read_csv("reports/train_label_errors.csv")["index"][:3]) == set(FLIPPED)


def test_every_image_is_held_out_once(flipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = np.zeros(90, int)
    predict_fold = label_errors.predict_fold

    def watched(*given: object) -> np.ndarray:
        held = given[-1]
        assert isinstance(held, np.ndarray)
        seen[held] += 1
        return predict_fold(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(label_errors, "predict_fold", watched)
    label_errors.main()
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("key", "value"), [("dataset", "fashion_mnist"), ("normalize.method", "standardize")]
)
def test_data_of_other_parameters_are_rejected(
    flipped: Path, edit: Edit, key: str, value: str
) -> None:
    edit(key, value)
    with pytest.raises(
        StageError, match=rf"^data: expected .*{value}.*, found tiny and min_max; run dvc repro$"
    ):
        label_errors.main()


@pytest.mark.parametrize("folds", ["1", "91", "-3"])
def test_invalid_number_of_folds_is_rejected(
    flipped: Path, monkeypatch: pytest.MonkeyPatch, folds: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["label_errors", "--folds", folds])
    with pytest.raises(StageError, match=rf"--folds: expected 2 to 90, found {folds}"):
        label_errors.main()
    assert not Path("reports/train_label_errors.csv").exists()


@pytest.mark.parametrize("seed", [0, 5])
def test_folds_have_equal_sizes_and_depend_on_the_seed(seed: int) -> None:
    folds = label_errors.fold_numbers(11, 3, seed)
    assert sorted(np.bincount(folds)) == [3, 4, 4]
    assert (folds == label_errors.fold_numbers(11, 3, seed)).all()
    assert (folds != label_errors.fold_numbers(11, 3, seed + 1)).any()
