"""Hashes DVC's cache and every out anew, against dvc.lock; names what is wrong, and the commands that mend it."""

import hashlib
import json
import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from stages.lib.params import read_yaml
from stages.lib.stage import StageError, run

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
CACHE = Path(".dvc/cache/files/md5")
RWLOCK = Path(".dvc/tmp/rwlock")


def md5(path: Path) -> str:
    """The MD5 by which DVC knows a file or a folder, whatever DVC remembers of it; of nothing, `nothing`."""
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


class Findings:
    """What is wrong, and what has to be done about it.

    Attributes:
        faults: A line each.
        remove: Files and folders that are not what they should be.
        commit: Stages whose outs are whole, but not in the cache.
        restore: Whether dvc.lock has to come from Git.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.remove: list[Path] = []
        self.commit: list[str] = []
        self.restore = False

    def commands(self) -> list[str]:
        """What a person types to mend it, in order; each does no harm where there is nothing to do."""
        restore = [f"git restore {LOCK}"] if self.restore else []
        remove = [shlex.join(["rm", "-rf", *map(str, self.remove)])] if self.remove else []
        # The runs of a stage that DVC remembers would bring back what is in the cache: it has to be
        # whole by then.
        return [*restore, *remove, *(f"dvc commit {name}" for name in self.commit), "dvc repro"]


def check_rwlock(found: Findings) -> None:
    """Looks for a DVC that is at work, or that ended without tidying up."""
    if not RWLOCK.exists():
        return
    try:
        locks = json.loads(RWLOCK.read_text(encoding="utf-8"))
        writers, readers = (locks.get(kind, {}).values() for kind in ("write", "read"))
        holders = {int(holder["pid"]): holder["cmd"] for holder in chain(writers, *readers)}
    except (ValueError, LookupError, TypeError, AttributeError):
        found.faults.append(f"{RWLOCK}: expected JSON of DVC's, found {RWLOCK.read_bytes()[:40]!r}")
        found.remove.append(RWLOCK)
        return
    for pid, command in holders.items():
        if psutil.pid_exists(pid):
            raise StageError(
                f"{RWLOCK}: expected no DVC at work, found process {pid} ({command}); wait for its end"
            )
    if holders:
        found.faults.append(
            f"{RWLOCK}: expected no lock, found those of processes that ended: {[*holders]}"
        )
        found.remove.append(RWLOCK)


def check_cache(found: Findings) -> None:
    """Hashes every object of the cache, also those of earlier runs: DVC trusts them while they are read-only."""
    for path in sorted(CACHE.glob("??/*")):
        if (content := md5(path)) != path.parent.name + path.name.removesuffix(".dir"):
            found.faults.append(
                f"{path}: expected the content that its name tells, found MD5 {content}"
            )
            found.remove.append(path)


def locked_outs() -> dict[str, dict[str, str]]:
    """The outs that dvc.lock tells, by stage and path, each with its MD5.

    Raises:
        StageError: The file is missing, cut off, or lacks an out.
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
        raise StageError(
            f"{LOCK}: expected the outs of each stage, found {len(text):,} characters, cut off"
        )
    for name, paths in pipeline_outs().items():
        if missing := paths.keys() - outs.get(name, {}).keys():
            raise StageError(
                f"{LOCK}: expected the outs of each stage, found none of {name}: {sorted(missing)}"
            )
    return outs


def pipeline_outs() -> dict[str, dict[str, bool]]:
    """The outs that dvc.yaml names, by stage and path, and whether DVC caches each; else it is in Git."""
    stages: Any = read_yaml(PIPELINE)
    return {
        name: {
            path: options.get("cache", True)
            for out in entry["outs"]
            for path, options in (out if isinstance(out, dict) else {out: {}}).items()
        }
        for name, entry in stages["stages"].items()
    }


def check_out(found: Findings, stage: str, path: Path, expected: str, cached: bool) -> None:
    """Compares an out, and its objects in the cache, with its MD5 in dvc.lock."""
    here = md5(path)
    if here != expected:
        found.faults.append(f"{path}: expected MD5 {expected} as in {LOCK}, found {here}")
        found.remove += [path] if path.exists() else []
    if not cached:
        return
    whole = CACHE / expected[:2] / expected[2:]
    objects = [whole]
    if expected.endswith(".dir") and whole.exists() and whole not in found.remove:
        members = [entry["md5"] for entry in json.loads(whole.read_bytes())]
        objects += [CACHE / member[:2] / member[2:] for member in members]
    missing = [file for file in objects if not file.exists()]
    found.faults += [f"{file}: expected an object of {path}, found nothing" for file in missing]
    if here == expected and (missing or {*objects} & {*found.remove}) and stage not in found.commit:
        found.commit.append(stage)


def check() -> Findings:
    """Looks at the locks, the cache and the outs of the project in the working directory."""
    found = Findings()
    check_rwlock(found)
    check_cache(found)
    try:
        locked = locked_outs()
    except StageError as error:
        found.faults.append(str(error))
        found.restore = True
        return found
    for stage, outs in pipeline_outs().items():
        for path, cached in outs.items():
            check_out(found, stage, Path(path), locked[stage][path], cached)
    return found


def main() -> None:
    found = check()
    if not found.faults:
        print(f"verify: the cache and every out are as {LOCK} tells")
        return
    print(
        *found.faults, "To mend it:", *(f"    {command}" for command in found.commands()), sep="\n"
    )
    sys.exit(1)


if __name__ == "__main__":
    run(main)
