"""A tiny data set with an entry of its own, and a folder in which stages run on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from stages.lib.sources import digest

ROOT = Path(__file__).parent.parent
CLASSES = ["bar", "blot", "frame"]
COUNTS = {"train": 90, "test": 30}
HEIGHT, WIDTH = 6, 5


def tiny_arrays() -> dict[str, np.ndarray]:
    """Images of three shapes under noise, in the catalogue's four arrays; the same at every call."""
    rng = np.random.default_rng(7)
    shapes = np.zeros((3, HEIGHT, WIDTH))
    shapes[0, :, 2] = shapes[1, 2:4, 1:4] = shapes[2, [0, -1]] = 200
    arrays = {}
    for split, count in COUNTS.items():
        labels = rng.permutation(np.arange(count) % 3).astype(np.uint8)
        noise = rng.integers(0, 56, (count, HEIGHT, WIDTH))
        arrays[f"{split}_images"] = (shapes[labels] + noise).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    return arrays


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def tiny_entry() -> dict[str, Any]:
    """The tiny data set's entry of datasets.yaml: IDX files in a folder beside it."""
    return {
        "title": "Tiny",
        "licence": "none needed",
        "classes": CLASSES,
        "image": [HEIGHT, WIDTH],
        "images": COUNTS,
        "sha256": {name: digest(array) for name, array in tiny_arrays().items()},
        "sources": {"local": {"folder": "tiny", "files": {name: f"{name}.idx" for name in tiny_arrays()}}},
    }


def write_yaml(path: Path, content: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(content, file)


def read_yaml(path: Path) -> Any:  # noqa: ANN401  # whatever the file holds
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def set_params(folder: Path, values: dict[str, object]) -> None:
    """Sets values of a folder's params.yaml by their dotted keys."""
    params = read_yaml(folder / "params.yaml")
    for key, value in values.items():
        section = params
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    write_yaml(folder / "params.yaml", params)


def make_tiny(folder: Path) -> None:
    """Points the project in a folder at the tiny data set, small enough to train in a second."""
    (folder / "tiny").mkdir()
    for name, array in tiny_arrays().items():
        (folder / "tiny" / f"{name}.idx").write_bytes(idx(array))
    datasets = read_yaml(ROOT / "datasets.yaml")
    write_yaml(folder / "datasets.yaml", datasets | {"tiny": tiny_entry()})
    params = read_yaml(ROOT / "params.yaml")
    params["dataset"] = "tiny"
    params["normalize"]["validation"] = 18
    params["model"]["mlp"]["hidden"] = [8]
    params["train"] |= {"epochs": 2, "batch_size": 10}
    write_yaml(folder / "params.yaml", params)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test: params.yaml, datasets.yaml and the tiny data set, nothing run yet."""
    make_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edit(project: Path) -> Callable[[str, object], None]:
    """Sets one value of params.yaml by its dotted key."""
    return lambda key, value: set_params(project, {key: value})
