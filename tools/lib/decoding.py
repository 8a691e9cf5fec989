"""Decode many image files into one array on disk, in parallel."""

import math
import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from stages.lib.files import read_chunks, write_chunks
from stages.lib.sources import pictures
from stages.lib.stage import StageError, end_with_parent

BATCH = 32  # files that a process decodes without interruption
WINDOW = 512  # batches submitted at once

Item = TypeVar("Item")
Result = TypeVar("Result")


def _start_worker() -> None:
    """Leave signals to the parent process, and end with it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def _in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items in as many processes as there are CPUs."""
    items = iter(items)
    window = list(islice(items, WINDOW))
    if len(window) < 8:
        yield from map(function, window)
        return
    # Forked processes start at once; spawned ones would import all modules again.
    context = multiprocessing.get_context("fork")
    workers = min(os.cpu_count() or 1, 16)
    try:
        with (
            warnings.catch_warnings(action="ignore", category=DeprecationWarning),
            ProcessPoolExecutor(workers, context, _start_worker) as pool,
        ):
            while window:
                yield from pool.map(function, window)
                window = list(islice(items, WINDOW))
    except BrokenProcessPool as error:
        raise StageError(
            "a process that decodes images was killed; close other programs if memory is short"
        ) from error


@dataclass(frozen=True)
class Batch:
    """Files to decode into rows of an array on disk that starts at byte `offset`.

    Unless `resize` is true, images of another size, or in color for a gray array, are skipped.
    """

    folder: Path
    files: Sequence[str]
    rows: Sequence[int]
    target: Path
    offset: int
    shape: tuple[int, ...]
    gray: bool
    resize: bool
    background: tuple[int, ...] | None = None


@dataclass
class Decoded:
    """Result of decoding: number of files by header, skipped rows, and errors by row."""

    headers: Counter[pictures.Header] = field(default_factory=Counter)
    left: list[int] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)


def _decode(batch: Batch) -> Decoded:
    done = Decoded()
    height, width, *color = batch.shape
    with pictures.strict(), batch.target.open("r+b", buffering=0) as target:
        for row, file in zip(batch.rows, batch.files, strict=True):
            try:
                with pictures.open_image(f"{batch.folder}/{file}") as (header, opened):
                    done.headers[header] += 1
                    fits = (height, width) == (header.height, header.width)
                    known = bool(color) or header.gray or batch.gray
                    image = None
                    if batch.resize or (fits and known):
                        image = pictures.decode(opened, gray=not color, background=batch.background)
                    if image is not None and image.shape[:2] != (header.height, header.width):
                        raise ValueError(
                            f"expected {header.height} x {header.width} pixels as in its header, "
                            f"found {image.shape[0]} x {image.shape[1]}"
                        )
            except pictures.UNREADABLE as error:
                done.faults[row] = " ".join(str(error).split()) or type(error).__name__
                continue
            if image is None:
                done.left.append(row)
                continue
            image = pictures.fit(image, height, width)
            target.seek(batch.offset + row * math.prod(batch.shape))
            target.write(np.ascontiguousarray(image).data)
    return done


def _background(pixels: Path, left_out: Sequence[int]) -> int:
    """Return the median of the border pixels of all images except some; white if none is left."""
    counts = np.zeros(256, np.int64)
    start = 0
    for chunk in read_chunks(pixels, 256):
        rows = np.setdiff1d(np.arange(len(chunk)), np.subtract(left_out, start))
        counts += np.bincount(pictures.border(chunk[rows]).ravel(), minlength=256)
        start += len(chunk)
    return int(np.searchsorted(counts.cumsum(), counts.sum() / 2)) if counts.any() else 255


def _decode_rows(rows: Sequence[int], files: Sequence[str], batch: Batch) -> Decoded:
    """Decode the files of the given rows in parallel, with the options of `batch`."""
    parts = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    batches = (replace(batch, files=[files[row] for row in part], rows=part) for part in parts)
    done = Decoded()
    for part in _in_parallel(_decode, batches):
        done.headers += part.headers
        done.left += part.left
        done.faults |= part.faults
    return done


def _first_shape(
    folder: Path, files: Sequence[str], size: tuple[int, int] | None, always_gray: bool
) -> tuple[int, ...]:
    """Return the array shape for the first readable image."""
    for file in files:
        with suppress(*pictures.UNREADABLE), pictures.open_image(folder / file) as (header, _):
            size = size or (header.height, header.width)
            return size if header.gray or always_gray else (*size, 3)
    return size or (1, 1)


def decode_files(
    folder: Path,
    files: Sequence[str],
    target: Path,
    size: tuple[int, int] | None,
    always_gray: bool,
) -> Counter[str]:
    """Decode image files into one array on disk, in parallel and with bounded memory.

    Args:
        folder: Folder of the files.
        files: File names in the order of the array's rows.
        target: The .npy to write.
        size: Height and width; the medians by default.
        always_gray: Whether to convert colors to gray; if not, the array is gray if all files are.

    Returns:
        Number of files by format, mode and size.

    Raises:
        StageError: The disk is too small, or files were rejected; each one is printed.
    """

    def start(shape: tuple[int, ...]) -> Batch:
        needed = 2 * len(files) * math.prod(shape)  # this array and the npz of the dataset
        if needed > (free := shutil.disk_usage(target.parent).free):
            raise StageError(
                f"images of {shape[0]} x {shape[1]} need {needed / 1e9:.1f} GB of disk, and "
                f"{free / 1e9:.1f} GB are free; choose a smaller --size"
            )
        write_chunks(target, (len(files), *shape), np.uint8, [])
        offset = target.stat().st_size
        os.truncate(target, offset + len(files) * math.prod(shape))
        resize = shape[:2] == size
        return Batch(folder, [], [], target, offset, shape, always_gray, resize)

    # Usually all images are like the first one. Those that differ are decoded in a second pass.
    shape = _first_shape(folder, files, size, always_gray)
    batch = start(shape)
    done = _decode_rows(range(len(files)), files, batch)
    headers = done.headers
    if headers:
        heights, widths = zip(*((h.height, h.width) for h in headers.elements()), strict=True)
        frame = size or (int(np.median(heights)), int(np.median(widths)))
        color = () if always_gray or all(header.gray for header in headers) else (3,)
        if (*frame, *color) != shape:
            batch = start((*frame, *color))
            done.left = [row for row in range(len(files)) if row not in done.faults]
        batch = replace(batch, resize=True)
        while done.left:
            again = _decode_rows(done.left, files, batch)
            done.left, done.faults = again.left, done.faults | again.faults
            if again.left:
                # One level for all channels, as in the model's metadata, so that images are filled
                # the same way in training and prediction.
                background = _background(target, [*again.left, *done.faults])
                batch = replace(batch, background=(background,))
    faults = [f"{folder / files[row]}: {text}" for row, text in sorted(done.faults.items())]
    if faults:
        print(*(f"rejected: {fault}" for fault in faults), sep="\n", file=sys.stderr)
        raise StageError(
            f"{len(faults):,} of {len(files):,} images rejected, named above; repair or remove "
            f"them. The first: {faults[0]}"
        )
    kinds: Counter[str] = Counter()
    for header, count in headers.items():
        kinds[f"{header.kind}, {header.height} x {header.width}"] += count
    return kinds
