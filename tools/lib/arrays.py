"""Read images and labels from npz, CSV and IDX files of any common layout."""

import gzip
import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.files import DAMAGED
from stages.lib.sources.formats import read_idx
from stages.lib.stage import StageError

SUFFIXES = re.compile(r"\.(npz|csv(\.gz)?)$|idx\d-ubyte(\.gz)?$", re.I)
SPLIT = re.compile(r"(?<![a-z])(train|t10k|test|val)(ing|id(ation)?)?(?![a-z])", re.I)
IMAGES = re.compile(r"(?<![a-z])(x|images?|imgs?|data|pixels)(?![a-z])", re.I)
LABELS = re.compile(r"(?<![a-z])(y|labels?|targets?)(?![a-z])", re.I)
SPLITS = {"train": "train", "t10k": "test", "test": "test", "val": "validation"}
LABEL_NAMES = ("label", "class", "target")
MAX_RATIO = 200  # of unpacked to packed size; archives beyond it are rejected

Arrays = dict[tuple[str, str], np.ndarray]  # by split ("" if not named) and "images" or "labels"


def split_of(name: str) -> str:
    """Return the split in a file or array name, or an empty string."""
    found = SPLIT.search(name)
    return SPLITS[found[1].lower()] if found else ""


def check_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip or npz, unless it is a decompression bomb."""
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGED as error:
        raise StageError(f"{path.name}: not a valid zip file: {error}") from error
    size = sum(member.file_size for member in archive.infolist())
    if size > MAX_RATIO * path.stat().st_size + 100_000_000:
        raise StageError(f"{path.name}: {size:,} bytes unpacked: a decompression bomb")
    return archive


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        check_archive(path).close()
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except DAMAGED as error:
        raise StageError(f"{path.name}: not a valid npz file of numbers: {error}") from error


def _read_idx(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(20)
    except DAMAGED as error:
        raise StageError(f"{path.name}: expected IDX, found: {error}") from error
    sides = start[3] if len(start) > 3 and start[:3] == b"\0\0\x08" else 0
    if sides not in (1, 3) or len(start) < 4 + 4 * sides:
        raise StageError(
            f"{path.name}: expected IDX of unsigned bytes in 1 or 3 dimensions, "
            f"found a file that starts with {start[:8]!r}"
        )
    return read_idx(
        path, tuple(int.from_bytes(start[i : i + 4]) for i in range(4, 4 * sides + 4, 4))
    )


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _is_header(first: Sequence[str]) -> bool:
    """Return whether the first row of a CSV contains column names."""
    numbers = [float(cell) for cell in first if _is_number(cell)]
    counts_up = len(numbers) > 3 and set(np.diff(numbers)) == {1}
    named = any(cell.strip().lower() in (*LABEL_NAMES, "") for cell in first)
    return named or counts_up or len(first) - len(numbers) > 1


def _label_column(name: str, table: pd.DataFrame) -> Any:  # noqa: ANN401  # a column's name
    """Find the column named label, class or target; else choose the first or last by content."""
    named = [c for c in table.columns if str(c).strip().lower() in LABEL_NAMES]
    if len(named) > 1:
        raise StageError(f"{name}: expected one label column, found {', '.join(named)}")
    if named:
        return named[0]
    # Unlike a label, a corner pixel is constant, correlates with its neighbor, or has many values.
    ends = {table.columns[0]: table.columns[1], table.columns[-1]: table.columns[-2]}
    scores = {}
    for column, neighbor in ends.items():
        if not pd.api.types.is_numeric_dtype(table[column]):
            return column
        values = table[column].nunique()
        if 2 <= values <= 256 and (table[column] % 1 == 0).all():
            varies = (
                pd.api.types.is_numeric_dtype(table[neighbor]) and table[neighbor].nunique() > 1
            )
            correlation = abs(table[column].corr(table[neighbor])) if varies else 0.0
            scores[column] = correlation + values / min(256, len(table))
    if not scores:
        raise StageError(
            f"{name}: expected labels in the first or last column, or in one named label, class "
            "or target; found none"
        )
    return min(scores, key=lambda column: scores[column])


def _read_csv(path: Path, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        packed: Any = "gzip" if file.read(2) == b"\x1f\x8b" else None
    options: Any = {"header": None, "compression": packed, "encoding": "utf-8-sig"}
    try:
        first = pd.read_csv(path, nrows=1, dtype=str, keep_default_na=False, **options)
        names = [str(cell) for cell in first.iloc[0]]
        has_header = _is_header(names)
        table = pd.read_csv(path, skiprows=int(has_header), low_memory=False, **options)
    except (*DAMAGED, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        found = " ".join(str(error).split())
        raise StageError(f"{path.name}: expected a CSV, found: {found}") from error
    if len(names) == 1 and (found := next((d for d in ";\t|" if d in names[0]), "")):
        raise StageError(f"{path.name}: expected commas between the cells, found {found!r}")
    if table.shape[1] != len(names) or len(names) < 2:
        raise StageError(
            f"{path.name}: expected rows of a label and pixels, found {len(names)} cells in the "
            f"first row and {table.shape[1]} below"
        )
    if has_header:
        table.columns = pd.Index(names)
        if names[0].strip() in ("", "Unnamed: 0"):
            table = table.iloc[:, 1:]
            notes.append(f"{path.name}: the index column is ignored")
    column = _label_column(path.name, table)
    position = int(np.flatnonzero(table.columns == column)[0]) + 1
    shown = f"named {column!r}" if has_header else "without a header"
    notes.append(f"{path.name}: labels from column {position} of {table.shape[1]}, {shown}")
    pixels = table.drop(columns=column)
    for name in pixels.columns[[not pd.api.types.is_numeric_dtype(t) for t in pixels.dtypes]]:
        wrong = next(cell for cell in pixels[name] if not _is_number(cell))
        raise StageError(f"{path.name}: column {name}: expected numbers, found {wrong!r}")
    return pixels.to_numpy(), table[column].to_numpy()


def label_names(name: str, labels: np.ndarray) -> list[str]:
    """Convert labels of any type, shape (n,) or (n, 1), to text: 3, 3.0 and "3" are one class."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise StageError(f"{name}: expected one label per image, found shape {labels.shape}")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels % 1).any():
            wrong = labels[~np.isfinite(labels) | (labels % 1 != 0)][0]
            raise StageError(f"{name}: expected whole numbers as labels, found {wrong}")
        labels = labels.astype(np.int64)
    if labels.dtype.kind in "iub":
        return [str(int(label)) for label in labels]
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if missing := sum(not isinstance(label, str) or not label.strip() for label in labels):
        raise StageError(f"{name}: expected a label for each image, found none for {missing:,}")
    return [str(label).strip() for label in labels]


def _white_level(array: np.ndarray, high: float) -> int:
    """Return the level of white, 1, 255 or 65,535, or 0 if unknown (integers up to 1)."""
    if array.dtype.kind in "bf" and high <= 1:
        return 1
    if high <= 1:
        return 0
    return 255 if high <= 255 else 65_535


def gray_levels(
    images: Sequence[np.ndarray], splits: Sequence[str], notes: list[str]
) -> list[np.ndarray]:
    """Convert images of any numeric type to uint8, all splits in the same way.

    Args:
        images: Images of each split, shape (n, height, width[, 3]).
        splits: Names of the splits.
        notes: Notes about conversions are appended.

    Raises:
        StageError: Levels are below 0 or above 65,535, or splits have different ranges.
    """
    kinds = {array.dtype.kind for array in images}
    if not kinds <= {"b", "i", "u", "f"}:
        raise StageError(f"images: expected numbers, found {images[0].dtype}")
    ranges = [(float(array.min()), float(array.max())) for array in images]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0 or high > 65_535:
        raise StageError(
            f"images: expected levels from 0 to 255 or to 65,535, found {low} to {high}"
        )
    whites = {_white_level(array, top) for array, (_, top) in zip(images, ranges, strict=True)}
    if len(whites - {0}) > 1:
        found = (f"{s} from {a:g} to {b:g}" for s, (a, b) in zip(splits, ranges, strict=True))
        raise StageError(f"images: expected one range for all splits, found {' and '.join(found)}")
    if kinds == {"b"} or ("f" in kinds and high <= 1):
        factor, conversion = 255.0, f"{images[0].dtype} from 0 to 1 multiplied by 255"
    elif high > 255:
        factor, conversion = 1 / 257, "16-bit levels divided by 257"
        if (remaining := round(high / 257) + 1) < 128:
            conversion += f"; {remaining} gray levels remain of {low:g} to {high:g}"
    else:
        if any(array.dtype != np.uint8 for array in images):
            notes.append(f"{images[0].dtype} from {low:g} to {high:g} rounded to uint8")
        return [
            array if array.dtype == np.uint8 else np.rint(array).astype(np.uint8)
            for array in images
        ]
    notes.append(conversion)
    return [np.rint(array * factor).astype(np.uint8) for array in images]


def shaped(images: np.ndarray, size: tuple[int, int] | None, transposed: bool) -> np.ndarray:
    """Reshape flat images; return shape (n, height, width[, 3])."""
    if images.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(images.shape[1] // channels)
            for shape in (size or (side, side), (side, side)):
                if images.ndim == 2 and math.prod((*shape, channels)) == images.shape[1]:
                    images = images.reshape(-1, *shape, channels)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] != 3:
        raise StageError(
            f"images: expected channels last, found shape {images.shape}; "
            "store images.transpose(0, 2, 3, 1)"
        )
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise StageError(
            f"images: expected (n, height, width), with 3 for color, or flat and square (else with "
            f"--size), found shape {images.shape}"
        )
    return images.swapaxes(1, 2) if transposed else images


def choose_group(groups: Iterable[str], name: str) -> str:
    """Choose the dataset whose file names contain `name` among those in a folder or zip."""
    groups = sorted(groups)
    chosen = [group for group in groups if name.lower() in re.split("[^a-z0-9]+", group.lower())]
    if len(groups) > 1 and len(chosen) != 1:
        known = ", ".join(group or "(no prefix)" for group in groups)
        raise StageError(f"expected one dataset, found several: {known}; use one of them as NAME")
    return chosen[0] if len(groups) > 1 else groups[0]


def read_arrays(files: Sequence[Path], name: str, notes: list[str]) -> Arrays:
    """Read the files of one dataset.

    Args:
        files: npz, CSV or IDX files; file or array names contain the split and images or labels.
        name: The dataset's name, which chooses among several.
        notes: Notes about the detected layout are appended.

    Returns:
        Images and labels of each split, as published.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        found = SPLIT.search(file.name) or IMAGES.search(file.name) or LABELS.search(file.name)
        groups.setdefault(file.name[: found.start()] if found else file.name, []).append(file)
    arrays: Arrays = {}
    for file in groups[choose_group(groups, name)]:
        if ".csv" in file.name.lower():
            pair = _read_csv(file, notes)
            found_here = {"images": pair[0], "labels": pair[1]}
        elif file.suffix.lower() == ".npz":
            found_here = _read_npz(file)
        else:
            found_here = {"": _read_idx(file)}
        for key, array in found_here.items():
            where = key if key in ("images", "labels") or split_of(key) else f"{file.name} {key}"
            split = split_of(key) or split_of(file.name)
            kind = "labels" if LABELS.search(where) else "images" if IMAGES.search(where) else ""
            if not kind:
                notes.append(f"{file.name}: array {key!r} is ignored")
            elif (split, kind) in arrays:
                raise StageError(f"{file.name}: duplicate {split} {kind}")
            else:
                arrays[split, kind] = array
    return arrays
