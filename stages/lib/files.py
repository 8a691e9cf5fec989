"""Read and write arrays, JSON, CSV and PNG. Writes are atomic, and reads detect damage."""

import hashlib
import io
import json
import lzma
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

if TYPE_CHECKING:  # slow imports that most stages do not need
    import pandas as pd
    from matplotlib.figure import Figure

# Raised by gzip, zipfile and NumPy's header parser on damaged files.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
REPAIR = "regenerate the outputs with dvc repro --force"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder atomically.

    Args:
        path: The file or folder.

    Yields:
        An unused path in the same folder with the same suffixes. It is renamed to `path` if the
        block succeeds and removed otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(f".{word}-{path.name}") for word in ("partial", "old"))
    _remove(partial)
    _remove(old)
    try:
        yield partial
        if path.is_dir() and partial.exists():  # a rename replaces files, not folders
            path.replace(old)
        partial.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # write errors carry no file name
            error.filename = str(path)
        raise
    finally:
        _remove(partial)
        _remove(old)


def read_array(path: Path) -> np.ndarray:
    """Memory-map a `.npy` file, read-only."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_chunks(path: Path, rows: int = 4096) -> Iterator[np.ndarray]:
    """Yield the rows of a `.npy` file in chunks of constant size."""
    for start in range(0, len(read_array(path)), rows):
        # A new map for each chunk, because a map keeps the pages read so far in memory.
        yield np.array(read_array(path)[start : start + rows])


def write_chunks(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, chunks: Iterable[np.ndarray]
) -> dict[str, object]:
    """Write a `.npy` file in chunks.

    Args:
        path: The file.
        shape: Shape of the whole array.
        dtype: Any dtype except object.
        chunks: The rows in order, shapes (any, *shape[1:]).

    Returns:
        The record that `check_arrays` compares: dtype, shape, and the SHA-256 of the elements in
        C order.
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
    """Write each array as `<folder>/<name>.npy` and return the records of `write_chunks`."""
    return {
        name: write_chunks(folder / f"{name}.npy", array.shape, array.dtype, [array])
        for name, array in arrays.items()
    }


def check_arrays(record: Path, *names: str) -> None:
    """Verify `.npy` files against the records of `write_chunks`.

    Args:
        record: A JSON file in the same folder, whose key `arrays` maps names to records.
        names: The names of the files, without suffix.

    Raises:
        StageError: A file is damaged, or its dtype, shape or digest differs.
    """
    written = read_json(record).get("arrays")
    for name in names:
        path = record.with_name(f"{name}.npy")
        with path.open("rb") as file:
            try:
                array = read_array(path)
            except DAMAGED as error:
                raise StageError(f"{path}: not a valid array file: {error}; {REPAIR}") from error
            file.seek(path.stat().st_size - array.nbytes)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = {"dtype": array.dtype.str, "shape": [*array.shape], "sha256": digest}
        expected = written.get(name) if isinstance(written, dict) else None
        if found != expected:
            raise StageError(f"{path}: expected {expected} as in {record}, found {found}; {REPAIR}")


def read_predictions(path: Path, dataset: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read and check the output of the stage predict.

    Args:
        path: The npz file.
        dataset: The content of dataset.json.

    Returns:
        parameters and multiply_adds (per image), shape (); and for validation and test,
        `<split>_labels`, shape (n,), uint8 in [0, classes), and `<split>_probabilities`, shape
        (n, classes), float32, rows sum to 1.

    Raises:
        StageError: The file is damaged, belongs to other images, or lacks an array of the right
            dtype, shape and range.
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
                    f"{path}: {split}: expected dtypes and shape {expected}, "
                    f"found {found}; {REPAIR}"
                )
            normalized = (np.abs(probabilities.sum(axis=1) - 1) < 1e-3).all()
            if not normalized or (labels >= classes).any():
                raise StageError(
                    f"{path}: {split}: expected labels below {classes}, and rows of probabilities "
                    f"that sum to 1, found others; {REPAIR}"
                )
        digest = hashlib.sha256(arrays["test_labels"].tobytes()).hexdigest()
        if digest != dataset["arrays"]["test_labels"]["sha256"]:
            raise StageError(
                f"{path}: expected the test labels of {dataset['title']}, found others; {REPAIR}"
            )
    except DAMAGED as error:
        raise StageError(f"{path}: not a valid npz file: {error}; {REPAIR}") from error
    return arrays


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a mapping as JSON, one key per line, in order."""
    with replacing(path) as partial:
        partial.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path}: not valid JSON: {error}; {REPAIR}") from error
    if not isinstance(content, dict):
        raise StageError(f"{path}: expected a JSON object, found {str(content)[:40]!r}; {REPAIR}")
    return content


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table without its index, with six decimals and LF line endings."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG without date and version."""
    with replacing(path) as partial:
        figure.savefig(partial, metadata={"Software": None})
