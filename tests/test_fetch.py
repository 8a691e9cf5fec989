"""The stage fetch, on files of this machine; other sources: test_sources.py."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages import fetch
from stages.lib.sources.fetching import digest
from stages.lib.stage import StageError
from tests.conftest import CLASSES, tiny_arrays


def test_writes_the_four_arrays_as_published_and_the_names_of_the_classes(project: Path) -> None:
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
        "arrays": written,
    }


def test_writes_nothing_where_a_digest_differs(project: Path) -> None:
    path = project / "tiny/test_labels.idx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(
        StageError, match=r"local: test_labels: expected sha256 \w{64}, found \w{64}"
    ):
        fetch.main()
    assert not list((project / "data").glob("*"))


def test_refuses_a_data_set_that_the_catalog_does_not_have(
    project: Path, edit: Callable[[str, object], None]
) -> None:
    edit("dataset", "mnits")
    with pytest.raises(
        StageError,
        match=r"dataset: expected an entry of datasets.yaml \(fashion_mnist, mnist, tiny\), found 'mnits'",
    ):
        fetch.main()
    assert not (project / "data").exists()
