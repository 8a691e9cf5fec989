"""Verify checksums of the DVC cache and all outputs, and print repair commands."""

import hashlib
import json
import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from dvc.repo import Repo

from stages.lib.params import read_yaml
from stages.lib.stage import StageError, run

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")


def md5(path: Path) -> str:
    """Compute DVC's MD5 of a file or folder; return "nothing" if it does not exist."""
    if path.is_dir():
        files = sorted(
            (file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()
        )
        listing = json.dumps([{"md5": md5(file), "relpath": name} for name, file in files])
        return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"
    if not path.exists():
        return "nothing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def cache_folder() -> Path:
    """Return the folder of the cache's objects, as a relative path if inside the project."""
    with Repo() as repo:
        folder = Path(repo.cache.local.path)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


class Findings:
    """Faults and their repairs.

    Attributes:
        faults: Descriptions, one line each.
        remove: Files and folders with wrong content.
        commit: Stages whose outputs are intact but missing from the cache.
        restore: Whether dvc.lock must be restored from Git.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.remove: list[Path] = []
        self.commit: list[str] = []
        self.restore = False

    def commands(self) -> list[str]:
        """Return the repair commands, in order; each is safe to repeat."""
        restore = [f"git restore {LOCK}"] if self.restore else []
        remove = [shlex.join(["rm", "-rf", *map(str, self.remove)])] if self.remove else []
        # dvc repro restores outputs from the run cache, so the cache must be repaired first.
        return [*restore, *remove, *(f"dvc commit {name}" for name in self.commit), "dvc repro"]


def check_rwlock(found: Findings) -> None:
    """Check for a running DVC process, and for stale locks of a killed one."""
    if not RWLOCK.exists():
        return
    try:
        locks = json.loads(RWLOCK.read_text(encoding="utf-8"))
        writers, readers = (locks.get(kind, {}).values() for kind in ("write", "read"))
        holders = {int(holder["pid"]): holder["cmd"] for holder in chain(writers, *readers)}
    except (ValueError, LookupError, TypeError, AttributeError):
        found.faults.append(f"{RWLOCK}: expected DVC's JSON, found {RWLOCK.read_bytes()[:40]!r}")
        found.remove.append(RWLOCK)
        return
    for pid, command in holders.items():
        if psutil.pid_exists(pid):
            raise StageError(
                f"DVC is running (process {pid}: {command}); run verify again once it has finished"
            )
    if holders:
        pids = ", ".join(map(str, holders))
        found.faults.append(f"{RWLOCK}: stale locks of processes that have exited: {pids}")
        found.remove.append(RWLOCK)


def check_cache(found: Findings, cache: Path) -> None:
    """Hash all objects in the cache, including those of earlier runs.

    DVC itself trusts an object as long as the file is read-only.
    """
    for path in sorted(cache.glob("??/*")):
        if (content := md5(path)) != path.parent.name + path.name.removesuffix(".dir"):
            found.faults.append(f"{path}: corrupted; the MD5 of its content is {content}")
            found.remove.append(path)


def locked_outs() -> dict[str, dict[str, str]]:
    """Return the MD5 of each output in dvc.lock, by stage and path.

    Raises:
        StageError: The file is missing, truncated, or lacks an output.
    """
    text = LOCK.read_text(encoding="utf-8", errors="replace") if LOCK.exists() else ""
    try:
        stages: Any = read_yaml(LOCK)
        outs = {
            name: {out["path"]: out["md5"] for out in entry["outs"] if out["size"] >= 0}
            for name, entry in stages["stages"].items()
        }
    except (StageError, OSError, LookupError, TypeError, AttributeError):
        outs = {}
    if not outs or not text.endswith("\n"):
        raise StageError(f"{LOCK} is missing or truncated ({len(text):,} characters)")
    for name, paths in pipeline_outs().items():
        if missing := paths.keys() - outs.get(name, {}).keys():
            raise StageError(f"{LOCK} lacks outputs of {name}: {', '.join(sorted(missing))}")
    return outs


def pipeline_outs() -> dict[str, dict[str, bool]]:
    """Return whether each output in dvc.yaml is cached by DVC, by stage and path."""
    stages: Any = read_yaml(PIPELINE)
    return {
        name: {
            path: options.get("cache", True)
            for out in entry["outs"]
            for path, options in (out if isinstance(out, dict) else {out: {}}).items()
        }
        for name, entry in stages["stages"].items()
    }


def check_out(
    found: Findings, cache: Path, stage: str, path: Path, expected: str, cached: bool
) -> None:
    """Compare an output and its cached objects with its MD5 in dvc.lock."""
    actual = md5(path)
    if actual != expected:
        found.faults.append(f"{path}: expected MD5 {expected} as in {LOCK}, found {actual}")
        if path.exists() or path.is_symlink():  # for a broken link, exists() is False
            found.remove.append(path)
    if not cached:
        return
    first = cache / expected[:2] / expected[2:]
    objects = [first]
    if expected.endswith(".dir") and first.exists() and first not in found.remove:
        members = [entry["md5"] for entry in json.loads(first.read_bytes())]
        objects += [cache / member[:2] / member[2:] for member in members]
    missing = [file for file in objects if not file.exists()]
    found.faults += [f"{file}: missing from the cache, part of {path}" for file in missing]
    damaged = missing or {*objects} & {*found.remove}
    if actual == expected and damaged and stage not in found.commit:
        found.commit.append(stage)


def check() -> Findings:
    """Check the locks, the cache and the outputs of the project in the working directory."""
    found, cache = Findings(), cache_folder()
    check_rwlock(found)
    check_cache(found, cache)
    try:
        locked = locked_outs()
    except StageError as error:
        found.faults.append(str(error))
        found.restore = True
        return found
    for stage, outs in pipeline_outs().items():
        for path, cached in outs.items():
            check_out(found, cache, stage, Path(path), locked[stage][path], cached)
    return found


def main() -> None:
    found = check()
    if not found.faults:
        print(f"verify: the DVC cache and all outputs match {LOCK}")
        return
    commands = (f"    {command}" for command in found.commands())
    print(*found.faults, "To repair:", *commands, sep="\n")
    sys.exit(1)


if __name__ == "__main__":
    run(main)
