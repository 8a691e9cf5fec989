"""Read published image files (IDX, npz, CSV), validated against their expected shape."""

import gzip
import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from stages.lib.files import DAMAGED
from stages.lib.stage import StageError


def _read_at_most(file: IO[bytes] | gzip.GzipFile, size: int, name: str) -> bytes:
    # One extra byte is enough to detect a longer file without unpacking a decompression bomb.
    content = file.read(size + 1)
    if len(content) > size:
        if content.lstrip()[:1] == b"<":
            raise StageError(f"{name}: expected data, found a web page")
        raise StageError(
            f"{name}: expected at most {size:,} bytes, found more; this is a different file"
        )
    return content


def _unpacked(path: Path, size: int) -> bytes:
    """Return the content of a plain, gzipped or zipped file, detected by its first bytes."""
    with path.open("rb") as file:
        start = file.read(4)
    try:
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                return _read_at_most(packed, size, path.name)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if len(names) != 1:
                    raise StageError(f"{path.name}: expected a zip of one file, found {len(names)}")
                parts = names[0].split("/")
                if ".." in parts or not parts[0]:  # path traversal
                    raise StageError(
                        f"{path.name}: expected a zip of a file inside a folder, found {names[0]!r}"
                    )
                with archive.open(names[0]) as member:
                    return _read_at_most(member, size, path.name)
        with path.open("rb") as plain:
            return _read_at_most(plain, size, path.name)
    except DAMAGED as error:
        raise StageError(f"{path.name}: not a valid archive: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _describe_start(content: bytes) -> str:
    if content.lstrip()[:1] == b"<":
        return "a web page"
    return f"{len(content):,} bytes that start with {content[:16]!r}"


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain, gzipped or zipped.

    The format is from LeCun, Cortes, Burges: "The MNIST database of handwritten digits".

    Args:
        path: The file.
        shape: The expected shape.

    Returns:
        The array, uint8, of that shape.

    Raises:
        StageError: The header has another dtype or shape, or the length does not match the header.
    """
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    content = _unpacked(path, len(header) + math.prod(shape))
    if content[: len(header)] != header:
        raise StageError(
            f"{path.name}: expected IDX of unsigned bytes, shape {shape}, "
            f"found {_describe_start(content)}"
        )
    if len(content) != len(header) + math.prod(shape):
        raise StageError(
            f"{path.name}: expected {len(header) + math.prod(shape):,} bytes for shape {shape}, "
            f"found {len(content):,}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def read_npz(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read an npz of unsigned bytes.

    No objects are unpickled, and declared shapes are checked before memory is allocated.

    Args:
        path: The file.
        shapes: Shapes of the expected arrays by name; the file must hold exactly these.

    Returns:
        The arrays by name, uint8.

    Raises:
        StageError: The file is not an npz, or an array is missing, unknown, or of another dtype,
            order or shape.
    """
    if not zipfile.is_zipfile(path):
        raise StageError(
            f"{path.name}: expected an npz, found {_describe_start(path.read_bytes())}"
        )
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in shapes):
                names = ", ".join(map(repr, archive.namelist()))
                raise StageError(f"{path.name}: expected arrays {', '.join(shapes)}, found {names}")
            for name, shape in shapes.items():
                with archive.open(f"{name}.npy") as member:
                    version = np.lib.format.read_magic(member)
                    if version != (1, 0):
                        raise StageError(
                            f"{path.name}: {name}: expected npy version 1.0, found {version}"
                        )
                    found = np.lib.format.read_array_header_1_0(member)
                    if found != (shape, False, np.dtype(np.uint8)):
                        found_shape, is_fortran, dtype = found
                        order = "Fortran" if is_fortran else "C"
                        raise StageError(
                            f"{path.name}: {name}: expected uint8 of shape {shape}, C order, "
                            f"found {dtype} of shape {found_shape}, {order} order"
                        )
                    content = _read_at_most(member, math.prod(shape), path.name)
                    arrays[name] = np.frombuffer(content, np.uint8).reshape(shape)
    except DAMAGED as error:
        raise StageError(f"{path.name}: not a valid npz file: {_one_line(error)}") from error
    return arrays


def read_csv(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read a CSV with a header that starts with `label`, and a row per image: label, then pixels.

    Args:
        path: The file, plain, gzipped or zipped.
        shape: Number of images, height, width, and 3 if in color.

    Returns:
        Images of that shape and labels of shape (n,), both uint8.

    Raises:
        StageError: The header or the number of rows or columns differs, or a cell is not an
            integer in [0, 255].
    """
    count, columns = shape[0], 1 + math.prod(shape[1:])
    content = _unpacked(path, 16 * columns + count * columns * len("255,"))
    header, _, body = content.partition(b"\n")
    if not header.startswith(b"label,") or header.count(b",") != columns - 1:
        raise StageError(
            f"{path.name}: expected a header of label and {columns - 1} pixels, "
            f"found {_describe_start(content)}"
        )
    try:
        with np.errstate(all="ignore"):  # a number that overflows every integer type
            table = pd.read_csv(
                io.BytesIO(body), header=None, dtype=np.uint8, skip_blank_lines=False
            ).to_numpy()
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        raise StageError(
            f"{path.name}: expected whole numbers from 0 to 255, found: {_one_line(error)}"
        ) from error
    if table.shape != (count, columns):
        raise StageError(
            f"{path.name}: expected {count:,} rows of {columns}, "
            f"found {table.shape[0]:,} of {table.shape[1]}"
        )
    return table[:, 1:].reshape(shape), table[:, 0].copy()
