"""The learning rate's schedule, and how the train stage feeds Keras."""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from stages import fetch, normalize, train
from stages.lib.files import read_array
from stages.lib.models import keras
from stages.lib.params import TrainParams, read_params
from stages.lib.stage import StageError


def params(schedule: Literal["constant", "one_cycle"]) -> TrainParams:
    return TrainParams(seed=0, epochs=1, batch_size=1, learning_rate=0.006, schedule=schedule)


def rates(steps: int) -> np.ndarray:
    """The learning rate before each step of a cycle, and after the last."""
    schedule: Any = train.learning_rate(params("one_cycle"), steps)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


def trained(folder: Path) -> bytes:
    """The weights file of a run of the stage, as in a process of its own: Keras numbers the layers it has made."""
    keras.utils.clear_session()
    train.main()
    return (folder / "data/model.weights.h5").read_bytes()


def test_a_constant_learning_rate_is_one_number() -> None:
    assert train.learning_rate(params("constant"), 100) == 0.006


def test_one_cycle_climbs_over_three_tenths_of_the_steps_and_falls_to_zero() -> None:
    cycle = rates(100)
    assert cycle[0] == 0
    assert cycle.argmax() == 30
    assert cycle[30] == pytest.approx(0.006)
    np.testing.assert_allclose(np.diff(cycle[:31]), 0.006 / 30, rtol=1e-4)
    assert (np.diff(cycle[30:]) < 0).all()
    assert cycle[65] == pytest.approx(0.003)
    assert cycle[100] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_cycle_is_finite_where_there_is_hardly_a_step(steps: int) -> None:
    assert np.isfinite(rates(steps)).all()


def test_the_same_seed_gives_the_same_bytes_with_one_cycle_and_others_than_without(project: Path, edit: Any) -> None:
    fetch.main()
    normalize.main()
    weights = []
    for schedule in ("one_cycle", "one_cycle", "constant"):
        edit("train.schedule", schedule)
        weights.append(trained(project))
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_refuses_a_schedule_that_it_does_not_know(project: Path, edit: Any) -> None:
    edit("train.schedule", "cosine")
    with pytest.raises(StageError, match=r"train.schedule: expected 'constant' or 'one_cycle', found 'cosine'"):
        read_params()


def test_training_from_mapped_files_gives_what_loaded_arrays_give(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch.main()
    normalize.main()
    mapped = trained(project)
    monkeypatch.setattr(train, "tensor", np.load)
    assert trained(project) == mapped


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tensor_is_the_file_itself_not_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    np.testing.assert_array_equal(train.tensor(path).numpy(), read_array(path))
    tensor = train.tensor(path)
    address = np.asarray(memoryview(tensor)).ctypes.data
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert any(int(start, 16) <= address < int(end, 16) for start, end in (line.split("-") for line in mapped))


def test_an_empty_split_is_an_empty_tensor(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, np.empty((0, 6, 5), np.float32))
    assert train.tensor(path).shape == (0, 6, 5)
