"""Fetch images from any of several sources, which must provide bit-identical arrays."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stages.lib.sources import formats
from stages.lib.sources.catalog import Dataset, Source
from stages.lib.sources.download import download
from stages.lib.sources.packages import from_debian, from_npm, run_program
from stages.lib.stage import StageError

KERAS_NAMES = {
    "train_images": "x_train",
    "train_labels": "y_train",
    "validation_images": "x_val",
    "validation_labels": "y_val",
    "test_images": "x_test",
    "test_labels": "y_test",
}
EXPERIMENTS = ".dvc/tmp/exps/"  # where DVC runs queued experiments and those with --temp
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # another source cannot help


def from_url(source: Source, folder: Path) -> None:
    """Download each file from an https base URL."""
    for key, name in source.files.items():
        download(f"{source.url}{name}", folder / key)


def from_kaggle(source: Source, folder: Path) -> None:
    """Download each file of a Kaggle dataset, with credentials from the environment if any."""
    for key, name in source.files.items():
        # A separate process, because kagglehub has no time limit and prints progress.
        command = [
            sys.executable,
            "-m",
            "stages.lib.sources.kaggle",
            source.kaggle or "",
            name,
            str(folder / key),
        ]
        run_program(command, folder, start=Path(__file__).parents[3])


def from_folder(source: Source, folder: Path) -> None:
    """Copy the files from a local folder.

    Raises:
        StageError: The folder is missing in the temporary workspace of an experiment.
    """
    own = Path(os.path.expanduser(source.folder or ""))  # noqa: PTH111  # keeps an unknown ~user
    if not own.exists() and EXPERIMENTS in Path.cwd().as_posix():
        raise StageError(
            f"{own} does not exist here: experiments run with --temp or --queue have only files "
            f"that Git or DVC tracks; run `dvc add {own}`, the `git add` that it prints, and commit"
        )
    for key, name in source.files.items():
        shutil.copyfile(own / name, folder / key)


def from_sklearn(_: Source, folder: Path) -> None:
    """Save scikit-learn's 1,797 digits, with every fifth image of each class in the test split."""
    from sklearn.datasets import load_digits  # slow to import, needed by this source only

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    arrays = {"x_train": images[~test], "x_test": images[test]}
    np.savez(folder / "npz", **arrays, y_train=labels[~test], y_test=labels[test])
    (folder / "npz.npz").rename(folder / "npz")


METHODS: dict[str, Callable[[Source, Path], None]] = {
    "url": from_url,
    "kaggle": from_kaggle,
    "npm": from_npm,
    "debian": from_debian,
    "folder": from_folder,
    "sklearn": from_sklearn,
}


def _read(source: Source, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {}
    for split, count in dataset.images.model_dump(exclude_none=True).items():
        shapes |= {f"{split}_images": (count, *dataset.image), f"{split}_labels": (count,)}
    if source.sklearn or "npz" in source.files:
        arrays = formats.read_npz(
            folder / "npz", {KERAS_NAMES[name]: shape for name, shape in shapes.items()}
        )
        return {name: arrays[KERAS_NAMES[name]] for name in shapes}
    if "train_csv" in source.files:
        arrays = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = formats.read_csv(
                folder / f"{split}_csv", shapes[f"{split}_images"]
            )
        return arrays
    return {name: formats.read_idx(folder / name, shape) for name, shape in shapes.items()}


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's bytes in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _check(arrays: dict[str, np.ndarray], dataset: Dataset) -> None:
    found = {name: digest(array) for name, array in arrays.items()}
    expected = dataset.sha256.model_dump()
    if others := [name for name in found if found[name] != expected[name]]:
        print("  digests of the fetched arrays, for the dataset definition:\n    sha256:")
        print("\n".join(f"      {name}: {sha256}" for name, sha256 in found.items()))
        raise StageError(
            "; ".join(f"{n}: expected sha256 {expected[n]}, found {found[n]}" for n in others)
        )
    for name, array in arrays.items():
        if name.endswith("labels") and array.max() >= len(dataset.classes):
            raise StageError(
                f"{name}: expected labels below {len(dataset.classes)}, the number of classes, "
                f"found {array.max()}"
            )


def _with_validation(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Append a published validation split to the training images and labels."""
    if "validation_images" in arrays:
        for kind in ("images", "labels"):
            parts = [arrays[f"train_{kind}"], arrays.pop(f"validation_{kind}")]
            arrays[f"train_{kind}"] = np.concatenate(parts)
    return arrays


def fetch_arrays(
    dataset: Dataset, source: str, scratch: Path | None = None
) -> dict[str, np.ndarray]:
    """Fetch a dataset from the first source that provides it.

    Args:
        dataset: Its digests and sources.
        source: `auto` for all of the dataset's sources in their order, or the name of one.
        scratch: Parent of the temporary folder for the fetched files; the system's by default.

    Returns:
        train_images (n, height, width) or (n, height, width, 3), train_labels (n,), test_images
        and test_labels, uint8, verified against the dataset's digests. A published validation
        split is appended to the training images and labels.

    Raises:
        StageError: The source is unknown, or every source failed; the message lists the reasons.
    """
    if source not in ("auto", *dataset.sources):
        known = ", ".join(("auto", *dataset.sources))
        raise StageError(f"params.yaml: fetch.source: expected one of {known}, found {source!r}")
    names = [*dataset.sources] if source == "auto" else [source]
    reasons = []
    for name in names:
        chosen = dataset.sources[name]
        method = next(name for name in METHODS if getattr(chosen, name) is not None)
        print(f"{dataset.title} from {name} ({getattr(chosen, method)})")
        try:
            with TemporaryDirectory(prefix="fetch-", dir=scratch and scratch.absolute()) as folder:
                METHODS[method](chosen, Path(folder))
                arrays = _read(chosen, Path(folder), dataset)
            _check(arrays, dataset)
            return _with_validation(arrays)
        except (StageError, OSError, subprocess.CalledProcessError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            reasons.append(f"{name}: {error}")
            if name != names[-1]:
                print(f"  not available, trying the next source: {error}")
    advice = "Repair the files, or the dataset definition in datasets/"
    if method not in ("folder", "sklearn"):
        advice = (
            "Check the network (HTTPS_PROXY is used if set), or copy the files here from another "
            "machine and name their folder in the dataset definition in datasets/ (folder: PATH)"
        )
    if len(reasons) == 1:
        raise StageError(
            f"{dataset.title} could not be fetched; {reasons[0].rstrip('.')}. {advice}"
        )
    raise StageError(f"{dataset.title} could not be fetched from any source", *reasons, advice)
