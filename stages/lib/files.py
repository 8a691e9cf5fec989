"""Arrays, JSON and CSV on disk, each whole or absent."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike

if TYPE_CHECKING:  # most stages draw nothing
    from matplotlib.figure import Figure


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lends a temporary name beside `path`; what stands there takes the place of `path` if the block succeeds.

    Args:
        path: The final name of a file or a folder.

    Yields:
        A name in the same folder, free, with the same suffixes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(f".{word}-{path.name}") for word in ("partial", "old"))
    _remove(partial)
    _remove(old)
    try:
        yield partial
        if path.is_dir() and partial.exists():  # a folder can only be renamed to a free name
            path.replace(old)
        partial.replace(path)
    finally:
        _remove(partial)
        _remove(old)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes each array as `<folder>/<name>.npy`; any shape, any dtype but object."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Maps a `.npy` file into memory, read-only: what is not looked at is not read."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_chunks(path: Path, rows: int = 4096) -> Iterator[np.ndarray]:
    """Yields a `.npy` file's rows in order, some at a time, so that memory does not grow with the file."""
    for start in range(0, len(read_array(path)), rows):
        # Mapped anew each time: a map that stays keeps every page that was read.
        yield np.array(read_array(path)[start : start + rows])


def write_chunks(path: Path, shape: tuple[int, ...], dtype: DTypeLike, chunks: Iterable[np.ndarray]) -> None:
    """Writes a `.npy` file some rows at a time.

    Args:
        path: The file.
        shape: Its shape once all rows are there.
        dtype: The type of its elements.
        chunks: The rows in order, shapes (any, *shape[1:]).
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            chunk.astype(dtype, copy=False).tofile(file)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a mapping as JSON, one key per line in the order given."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table with a header and no index; floats with six decimals, lines end in a line feed."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as PNG, without date or version in it."""
    with replacing(path) as partial:
        figure.savefig(partial, metadata={"Software": None})
