"""The stage fetch, on files of this machine; other sources: test_fetching.py."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages import fetch
from stages.lib.sources.fetching import digest
from stages.lib.stage import StageError
from tests.helpers import CLASSES, tiny_arrays


def test_writes_arrays_and_class_names(project: Path) -> None:
    fetch.main()
    for name, array in tiny_arrays().items():
        np.testing.assert_array_equal(np.load(project / f"data/raw/{name}.npy"), array)
    written = {
        name: {"dtype": "|u1", "shape": [*array.shape], "sha256": digest(array)}
        for name, array in tiny_arrays().items()
    }
    assert json.loads((project / "data/raw/dataset.json").read_text()) == {
        "name": "tiny",
        "title": "Tiny",
        "classes": CLASSES,
        "flip": False,
        "levels": [0, 255],
        "background": background_of_tiny(),
        "validation": 0,
        "arrays": written,
    }


def background_of_tiny() -> int:
    images = tiny_arrays()["train_images"]
    border = np.ones(images.shape[1:], bool)
    border[1:-1, 1:-1] = False
    return int(np.median(images[:, border]))


@pytest.mark.parametrize(
    ("images", "level"),
    [
        (
            np.pad(np.full((2, 3, 3), 9, np.uint8), ((0, 0), (1, 1), (1, 1)), constant_values=250),
            250,
        ),
        (np.full((1, 4, 4, 3), 7, np.uint8), 7),
        (np.array([[[0, 255, 255]]], np.uint8), 255),  # of one row
        (np.array([[[5]]], np.uint8), 5),
    ],
)
def test_background_is_the_median_of_the_border(images: np.ndarray, level: int) -> None:
    assert fetch.background(images) == level


def test_writes_nothing_if_a_digest_differs(project: Path) -> None:
    path = project / "tiny/test_labels.idx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(
        StageError, match=r"local: test_labels: expected sha256 \w{64}, found \w{64}"
    ):
        fetch.main()
    assert not list((project / "data").glob("*"))


def test_unknown_dataset_is_rejected(project: Path, edit: Callable[[str, object], None]) -> None:
    edit("dataset", "mnits")
    with pytest.raises(
        StageError,
        match=r"dataset: expected a file in datasets/ \(tiny\), found 'mnits'",
    ):
        fetch.main()
    assert not (project / "data").exists()
