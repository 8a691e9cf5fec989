"""Arrays, JSON and CSV on disk, each whole or absent, and what was written known again when it is read."""

import hashlib
import io
import json
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from stages.lib.stage import StageError

if TYPE_CHECKING:  # most stages draw nothing, and write no tables
    import pandas as pd
    from matplotlib.figure import Figure

# What NumPy and zipfile raise on bytes that are not what they should be.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
AGAIN = "dvc repro --force makes all anew"


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
    except OSError as error:
        if error.errno and not error.filename:  # a write does not say where
            error.filename = str(path)
        raise
    finally:
        _remove(partial)
        _remove(old)


def read_array(path: Path) -> np.ndarray:
    """Maps a `.npy` file into memory, read-only: what is not looked at is not read."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_chunks(path: Path, rows: int = 4096) -> Iterator[np.ndarray]:
    """Yields a `.npy` file's rows in order, some at a time, so that memory does not grow with the file."""
    for start in range(0, len(read_array(path)), rows):
        # Mapped anew each time: a map that stays keeps every page that was read.
        yield np.array(read_array(path)[start : start + rows])


def write_chunks(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, chunks: Iterable[np.ndarray]
) -> dict[str, object]:
    """Writes a `.npy` file some rows at a time.

    Args:
        path: The file.
        shape: Its shape once all rows are there.
        dtype: The type of its elements.
        chunks: The rows in order, shapes (any, *shape[1:]).

    Returns:
        What `check_arrays` knows it by: dtype, shape, and the SHA-256 of its elements in C order.
    """
    if np.dtype(dtype).hasobject:
        raise ValueError(f"{path}: expected numbers, found Python objects")
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    digest = hashlib.sha256()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            content = np.ascontiguousarray(chunk, dtype).data
            digest.update(content)
            file.write(content)
    return {"dtype": np.dtype(dtype).str, "shape": [*shape], "sha256": digest.hexdigest()}


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Writes each array as `<folder>/<name>.npy`; any shape, any dtype but object; returns what each is known by."""
    return {
        name: write_chunks(folder / f"{name}.npy", array.shape, array.dtype, [array])
        for name, array in arrays.items()
    }


def check_arrays(record: Path, *names: str) -> None:
    """Refuses `.npy` files that are not what was written; reads them whole, some at a time.

    Args:
        record: A JSON file beside them, whose `arrays` has for each name what `write_chunks`
            returned.
        names: Of the files, without suffix.

    Raises:
        StageError: dtype, shape or digest is another one.
    """
    written = read_json(record).get("arrays")
    for name in names:
        path = record.with_name(f"{name}.npy")
        with path.open("rb") as file:
            try:
                array = read_array(path)
            except DAMAGED as error:
                raise StageError(
                    f"{path}: expected a whole array, found: {error}; {AGAIN}"
                ) from error
            file.seek(path.stat().st_size - array.nbytes)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = {"dtype": array.dtype.str, "shape": [*array.shape], "sha256": digest}
        expected = written.get(name) if isinstance(written, dict) else None
        if found != expected:
            raise StageError(
                f"{path}: expected {expected}, as {record} has it, found {found}; {AGAIN}"
            )


def read_predictions(path: Path, dataset: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads what the stage predict writes.

    Args:
        path: The npz.
        dataset: What fetch wrote into dataset.json.

    Returns:
        parameters (), multiply_adds () of one image, and for validation and test `<split>_labels`
        (n,), uint8, in [0, classes), and `<split>_probabilities` (n, classes), float32, rows add up
        to 1.

    Raises:
        StageError: It is damaged, or an array is missing, or of another dtype, shape or range, or
            other images'.
    """
    classes = len(dataset["classes"])
    content = path.read_bytes()
    try:
        arrays: dict[str, np.ndarray] = dict(np.load(io.BytesIO(content), allow_pickle=False))
        for split in ("validation", "test"):
            labels, probabilities = (
                arrays[f"{split}_{kind}"] for kind in ("labels", "probabilities")
            )
            found = (labels.dtype.str, probabilities.dtype.str, probabilities.shape)
            if found != (expected := ("|u1", "<f4", (len(labels), classes))):
                raise StageError(
                    f"{path}: {split}: expected dtypes and shape {expected}, found {found}; {AGAIN}"
                )
            if (
                not (np.abs(probabilities.sum(axis=1) - 1) < 1e-3).all()
                or (labels >= classes).any()
            ):
                raise StageError(
                    f"{path}: {split}: expected labels below {classes}, and rows of probabilities "
                    f"that add up to 1, found others; {AGAIN}"
                )
        if (
            hashlib.sha256(arrays["test_labels"].tobytes()).hexdigest()
            != dataset["arrays"]["test_labels"]["sha256"]
        ):
            raise StageError(
                f"{path}: expected the test labels of {dataset['title']}, found others; {AGAIN}"
            )
    except DAMAGED as error:
        raise StageError(f"{path}: expected a whole npz, found: {error}; {AGAIN}") from error
    return arrays


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a mapping as JSON, one key per line in the order given."""
    with replacing(path) as partial:
        partial.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path}: expected JSON, found: {error}; {AGAIN}") from error
    if not isinstance(content, dict):
        raise StageError(f"{path}: expected a JSON object, found {str(content)[:40]!r}; {AGAIN}")
    return content


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Writes a table with a header and no index; floats with six decimals, lines end in a line feed."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as PNG, without date or version in it."""
    with replacing(path) as partial:
        figure.savefig(partial, metadata={"Software": None})
