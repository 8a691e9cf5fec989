"""Where raw images come from; every source has to give the same arrays, to the byte."""

import errno
import hashlib
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
    "test_images": "x_test",
    "test_labels": "y_test",
}
EXPERIMENTS = ".dvc/tmp/exps/"  # where DVC runs an experiment of its queue, or with --temp
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # no other source helps


def from_url(source: Source, folder: Path) -> None:
    """Downloads each file from below an https address."""
    for key, name in source.files.items():
        download(f"{source.url}{name}", folder / key)


def from_kaggle(source: Source, folder: Path) -> None:
    """Downloads each file of a public Kaggle dataset; without an account, or with the one in the environment."""
    for key, name in source.files.items():
        # A process of its own: kagglehub sets no time limit, and prints what nobody asked for.
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
    """Takes the files from a folder of this machine.

    Raises:
        StageError: This is a temporary experiment, which does not have the folder.
    """
    own = Path(source.folder or "").expanduser()
    if not own.exists() and EXPERIMENTS in Path.cwd().as_posix():
        raise StageError(
            f"{own} does not exist here: experiments run with --temp or --queue see only files "
            f"that Git or DVC tracks; run `dvc add {own}`, then `git add {own}.dvc` and commit"
        )
    for key, name in source.files.items():
        shutil.copyfile(own / name, folder / key)


WAYS: dict[str, Callable[[Source, Path], None]] = {
    "url": from_url,
    "kaggle": from_kaggle,
    "npm": from_npm,
    "debian": from_debian,
    "folder": from_folder,
}


def _read(source: Source, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {}
    for split in ("train", "test"):
        count = getattr(dataset.images, split)
        shapes |= {f"{split}_images": (count, *dataset.image), f"{split}_labels": (count,)}
    if "npz" in source.files:
        arrays = formats.read_npz(
            folder / "npz", {KERAS_NAMES[name]: shape for name, shape in shapes.items()}
        )
        return {name: arrays[KERAS_NAMES[name]] for name in shapes}
    if "train_csv" in source.files:
        arrays = {}
        for split in ("train", "test"):
            shape = (getattr(dataset.images, split), dataset.image[0], dataset.image[1])
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = formats.read_csv(
                folder / f"{split}_csv", shape
            )
        return arrays
    return {name: formats.read_idx(folder / name, shape) for name, shape in shapes.items()}


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _check(arrays: dict[str, np.ndarray], dataset: Dataset) -> None:
    digests = {
        name: (getattr(dataset.sha256, name), digest(array)) for name, array in arrays.items()
    }
    others = [
        f"{name}: expected sha256 {e}, found {f}" for name, (e, f) in digests.items() if e != f
    ]
    if others:
        raise StageError("; ".join(others))
    for name, array in arrays.items():
        if name.endswith("labels") and array.max() >= len(dataset.classes):
            raise StageError(
                f"{name}: expected labels below {len(dataset.classes)}, the number of classes, found {array.max()}"
            )


def fetch_arrays(
    dataset: Dataset, source: str, scratch: Path | None = None
) -> dict[str, np.ndarray]:
    """Brings a dataset here from the first source that has it.

    Args:
        dataset: The entry of the catalog.
        source: `auto` for all of the entry's sources in their order, or the name of one.
        scratch: A folder for what is fetched, which is removed again; if not given, the system's.

    Returns:
        train_images (n, height, width), train_labels (n,), test_images and test_labels, uint8,
        whose digests are those of the catalog.

    Raises:
        StageError: No such source, or each one failed: with each one's reason.
    """
    if source not in ("auto", *dataset.sources):
        known = ", ".join(("auto", *dataset.sources))
        raise StageError(f"params.yaml: fetch.source: expected one of {known}, found {source!r}")
    names = [*dataset.sources] if source == "auto" else [source]
    reasons = []
    for name in names:
        chosen = dataset.sources[name]
        way = next(way for way in WAYS if getattr(chosen, way) is not None)
        print(f"{dataset.title} from {name} ({getattr(chosen, way)})")
        try:
            with TemporaryDirectory(prefix="fetch-", dir=scratch and scratch.absolute()) as folder:
                WAYS[way](chosen, Path(folder))
                arrays = _read(chosen, Path(folder), dataset)
            _check(arrays, dataset)
            return arrays
        except (StageError, OSError, subprocess.CalledProcessError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            reasons.append(f"{name}: {error}")
            if name != names[-1]:
                print(f"  failed: {error}")
    advice = "Repair the files, or their entry in datasets.yaml"
    if way != "folder":
        advice = (
            "Check the network (HTTPS_PROXY is used if set), or copy the files here from another "
            "machine and name their folder as a source in datasets.yaml (folder: PATH)"
        )
    if len(reasons) == 1:
        raise StageError(
            f"{dataset.title} could not be fetched; {reasons[0].rstrip('.')}. {advice}"
        )
    raise StageError(f"{dataset.title} could not be fetched from any source", *reasons, advice)
