"""Run an experiment of a commit in this clone, and push it to the Git and DVC remotes.

    python -m tools.lib.experiment REMOTE COMMIT NAME [KEY=VALUE ...]

runs one experiment and prints its commit and duration in seconds; without a name it only checks the
environment.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

from dvc.config_schema import RelPath
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.repo import Repo
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.utils import as_atomic

from stages.lib.stage import StageError, dvc_children, end_with_parent, run
from tools.lib.runs import LOCK

RETRY_DELAYS = (5, 10, 20, 40, 60)  # seconds between attempts to reach a remote: over two minutes
# Errors of DVC's file systems that are not OSErrors, by the optional module that defines them.
REMOTE_ERRORS = {
    "asyncssh": "Error",
    "httpx": "HTTPError",
    "webdav4.client": "ClientError",
    "botocore.exceptions": "BotoCoreError",
}


def call(*command: str, preexec_fn: Callable[[], None] | None = None) -> str:
    """Run a command and return its stdout.

    SIGINT is forwarded to the command's process group, and the function waits for the command to
    exit: killing DVC while it runs an experiment would leave a stage running.

    Raises:
        StageError: The command failed.
    """
    # Background processes of shell scripts ignore SIGINT, and so do their children.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    # Files, because children may outlive a pipe.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with subprocess.Popen(
            command, stdout=out, stderr=err, start_new_session=True, preexec_fn=preexec_fn
        ) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                dvc_children.append(process.pid)
                os.killpg(process.pid, signal.SIGTERM if ignored else signal.SIGINT)
                process.wait()
                dvc_children.clear()
                raise
        for file in (out, err):
            file.seek(0)
        output, errors = out.read(), err.read()
    if process.returncode:
        shown = " ".join(command).removeprefix(f"{sys.executable} -m ")
        reason = " ".join((errors or output).split())[-300:]
        raise StageError(f"{shown}: exit code {process.returncode}: {reason}")
    return output


def dvc(*arguments: str) -> None:
    """Run a DVC command. On Linux, it is killed when this process dies."""
    call(sys.executable, "-m", "dvc", *arguments, preexec_fn=end_with_parent)


def head() -> str:
    """Return the commit of HEAD."""
    return call("git", "rev-parse", "HEAD").strip()


def overrides(values: Mapping[str, object]) -> list[str]:
    """Format values of params.yaml for DVC's option -S."""
    return [f"{key}={value}" for key, value in values.items()]


def run_experiment(name: str, changes: Sequence[str], *options: str) -> None:
    """Run an experiment on HEAD in a temporary folder.

    Args:
        name: Name of the experiment.
        changes: Overrides of params.yaml, `KEY=VALUE`.
        options: Additional options of `dvc exp run`.
    """
    words = [word for change in changes for word in ("-S", change)]
    dvc("exp", "run", *options, "--temp", "--name", name, *words)


def reference(commit: str, name: str) -> str:
    """Return the Git reference of an experiment of a commit, as named by DVC."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def references(remote: str, pattern: str) -> dict[str, str]:
    """Return references on a Git remote and their commits.

    Args:
        remote: Name or address of the Git remote.
        pattern: A reference, or a pattern such as `refs/exps/*`.
    """
    lines = call("git", "ls-remote", remote, pattern).splitlines()
    return {ref: commit for commit, ref in (line.split("\t") for line in lines)}


def version_faults(lock: Path = Path(LOCK)) -> list[str]:
    """List differences between installed and locked packages."""
    locked: dict[str, set[str]] = defaultdict(set)
    optional = set()
    text = lock.read_text(encoding="utf-8")
    for name, number, marker in re.findall(r"^([\w.-]+)==(\S+)( ; .+)? \\$", text, re.M):
        locked[name].add(number)
        if marker:  # only for some systems or versions of Python
            optional.add(name)
    faults = []
    for name, numbers in locked.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
            if name in optional:
                continue
        if found not in numbers:
            faults.append(f"{name} {found} instead of {' or '.join(sorted(numbers))}")
    return faults


def store_address(repo: Repo) -> str:
    """Return the address of the DVC remote.

    Raises:
        StageError: No DVC remote is configured, or its path is relative.
    """
    name = repo.config["core"].get("remote")
    if not name:
        raise StageError(
            "no DVC remote; run `dvc remote add --default store ADDRESS`, "
            "then commit and push .dvc/config"
        )
    address: str = repo.config["remote"][name]["url"]
    if isinstance(address, RelPath):
        raise StageError(
            f"DVC remote {name} has a relative path, which temporary folders cannot resolve; "
            f"run `dvc remote modify {name} url {address}`, then commit and push .dvc/config"
        )
    return address


def remote_errors() -> tuple[type[Exception], ...]:
    """Return the error classes of the file systems that are loaded."""
    modules = [name for name in REMOTE_ERRORS if name in sys.modules]
    return (OSError, *(getattr(sys.modules[name], REMOTE_ERRORS[name]) for name in modules))


@contextmanager
def remote_faults() -> Iterator[None]:
    """Convert errors of the DVC remote to a StageError of one line."""
    try:
        yield
    except remote_errors() as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StageError(f"DVC remote: {reason}") from error


def open_store(repo: Repo) -> HashFileDB:
    """Open the object store of the DVC remote.

    Raises:
        StageError: The remote is unreachable, or is a folder that does not exist. DVC would create
            the folder, even below an unmounted mount point.
    """
    with remote_faults():
        store = repo.cloud.get_remote_odb()
        try:
            store.fs.info(store.path)  # in some file systems, exists() is False on any error
        except FileNotFoundError as error:
            if isinstance(store.fs, LocalFileSystem):
                raise StageError(
                    f"DVC remote: {store.path} does not exist; mount it, or create it: "
                    f"mkdir -p {store.path}"
                ) from error
    return store


class Data:
    """The data of an experiment on the DVC remote, checked object by object.

    DVC's own index assumes that objects pushed once are still on the remote.
    """

    def __init__(self, repo: Repo, commit: str) -> None:
        with repo.switch(commit):
            outs = [out for out in repo.index.outs if out.use_cache and out.can_push]
        # The digest of each output in dvc.lock, and its total size in bytes.
        self.outputs: list[tuple[str, int]] = [(out.hash_info.value, out.meta.size) for out in outs]
        self.cache: HashFileDB = repo.cache.local
        self.remote = open_store(repo)

    def missing(self) -> list[str]:
        """List digests of missing or damaged objects on the remote: files, then folder listings."""
        with remote_faults():
            damaged, files = [], {}
            for digest, _ in self.outputs:
                files[digest] = [digest]
                if digest.endswith(".dir"):
                    listed = read_listing(self.remote, digest)
                    if listed is None:
                        damaged.append(digest)
                    files[digest] = listed or read_listing(self.cache, digest) or []
            sizes = self._remote_sizes({file for each in files.values() for file in each})
        missing = {file for file, size in sizes.items() if size != self._cached_size(file, size)}
        for digest, size in self.outputs:
            if sum(sizes[file] for file in files[digest]) != size:
                missing |= {*files[digest]} & missing or {*files[digest]}
        return sorted(missing) + damaged

    def _remote_sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """Return the size of each object on the remote in bytes, -1 if it is missing."""
        digests = sorted(digests)
        paths = [self.remote.oid_to_path(digest) for digest in digests]
        sizes = {}
        entries = self.remote.fs.info(paths, return_exceptions=True)
        for digest, entry in zip(digests, entries, strict=True):
            if isinstance(entry, Exception) and not isinstance(entry, FileNotFoundError):
                raise entry
            sizes[digest] = -1 if isinstance(entry, FileNotFoundError) else entry["size"]
        return sizes

    def _cached_size(self, digest: str, default: int) -> int:
        """Return the size of an object in the cache of this clone in bytes."""
        path = Path(self.cache.oid_to_path(digest))
        return path.stat().st_size if path.exists() else max(default, 0)

    def push(self) -> None:
        """Push missing or damaged objects: files first, then folder listings."""
        missing = self.missing()
        for folders in (False, True):
            digests = [digest for digest in missing if digest.endswith(".dir") == folders]
            if digests:
                with remote_faults():
                    self._upload(digests)
        if left := self.missing():
            raise StageError(f"DVC remote: {len(left)} files are missing after the push")

    def is_lost(self) -> bool:
        """Return whether an object is neither in this clone nor on the remote."""
        return not all(Path(self.cache.oid_to_path(digest)).exists() for digest in self.missing())

    def _upload(self, digests: Sequence[str]) -> None:
        if self.remote.fs.protocol != "ssh":
            paths = [self.cache.oid_to_path(digest) for digest in digests]
            self.remote.add(paths, self.cache.fs, digests, check_exists=False)
            return
        # Otherwise DVC writes to the final path: if two clones upload the same object and one is
        # killed, the object can have the right size and a hole.
        for digest in digests:
            path = self.remote.oid_to_path(digest)
            with as_atomic(self.remote.fs, path, create_parents=True) as partial:
                self.remote.fs.put_file(self.cache.oid_to_path(digest), partial)


def read_listing(store: HashFileDB, digest: str) -> list[str] | None:
    """Read the digests of a folder's files from its listing; None if missing or damaged."""
    try:
        with store.fs.open(store.oid_to_path(digest), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest.removesuffix(".dir"):
        return None
    return [entry["md5"] for entry in json.loads(content)]


def fetch(remote: str, commit: str, name: str) -> str:
    """Fetch an experiment from a Git remote; return its commit, or "" if it is not there."""
    ref = reference(commit, name)
    found = references(remote, ref).get(ref, "")
    if found:
        call("git", "fetch", "--quiet", "--no-write-fetch-head", remote, ref)
    return found


def find(remote: str, commit: str, name: str) -> str:
    """Return the commit of an experiment that is complete on both remotes, or "".

    A reference does not imply that the data is complete: DVC pushes the reference first, and exits
    with 0 even if a push fails.
    """
    found = fetch(remote, commit, name)
    with Repo() as repo:
        if found:
            return "" if Data(repo, found).missing() else found
        open_store(repo)  # fail before the run if the data could not be pushed
    return ""


def push(remote: str, commit: str, name: str) -> str:
    """Push an experiment of this clone: its data, then its reference.

    Returns:
        The experiment's commit on the remote, which differs if another clone pushed first.
    """
    ref = reference(commit, name)
    found = fetch(remote, commit, name)
    own = call("git", "rev-parse", ref).strip()
    with Repo() as repo:
        if found and not Data(repo, found).missing():
            return found
        Data(repo, own).push()
    # Replace a reference without data, unless another clone has pushed in the meantime.
    call("git", "push", "--quiet", f"--force-with-lease={ref}:{found}", remote, f"{own}:{ref}")
    if (pushed := find(remote, commit, name)) != own:
        raise StageError(f"{name}: pushed {own[:7]}, but {remote} has {pushed[:7] or 'nothing'}")
    return own


def with_retries(attempt: Callable[[str, str, str], str], *words: str) -> str:
    """Retry for two minutes if a remote is temporarily unreachable."""
    for wait in RETRY_DELAYS:
        try:
            return attempt(*words)
        except (StageError, OSError, DvcException) as error:
            reason = " ".join(str(error).split())
            print(f"retrying in {wait} s: {reason}", file=sys.stderr, flush=True)
            time.sleep(wait)
    try:
        return attempt(*words)
    except (OSError, DvcException) as error:
        raise StageError(" ".join(str(error).split())) from error


def check(commit: str) -> None:
    """Check that experiments can run and are reproducible in this environment.

    Raises:
        StageError: Versions differ, HEAD is another commit, the clone is shallow, or it has
            no DVC remote.
    """
    if faults := version_faults():
        raise StageError(f"versions differ from {LOCK}: {', '.join(faults)}")
    if call("git", "rev-parse", "--is-shallow-repository").strip() == "true":
        raise StageError("DVC needs the history of the commit; run `git fetch --unshallow`")
    if (found := head()) != commit:
        raise StageError(f"HEAD is {found[:7]}; run `git checkout --detach {commit[:7]}`")
    with Repo() as repo:
        store_address(repo)


def check_remotes(remote: str, commit: str) -> None:
    """Check once, without retries, that both remotes can be read."""
    references(remote, reference(commit, "*"))
    with Repo() as repo:
        open_store(repo)


def run_and_push(remote: str, commit: str, name: str, changes: Sequence[str]) -> str:
    """Run and push an experiment, unless it is on the remotes; safe to repeat.

    If two clones run the same experiment, the first push wins.

    Args:
        remote: Name or address of the Git remote; the DVC remote is the configured one.
        commit: Hash of HEAD.
        name: Name of the experiment.
        changes: Overrides of params.yaml, `KEY=VALUE`.

    Returns:
        The experiment's commit on the remote.

    Raises:
        StageError: A stage failed, or a remote was unreachable for more than two minutes.
    """
    check(commit)
    if found := with_retries(find, remote, commit, name):
        return found
    ref = reference(commit, name)
    own = call("git", "for-each-ref", "--format=%(objectname)", ref).strip()
    if own:
        with Repo() as repo:
            if Data(repo, own).is_lost():  # pulled from the remotes, which lost it later
                call("git", "update-ref", "-d", ref)
                own = ""
    if not own:
        run_experiment(name, changes, "--pull")
    return with_retries(push, remote, commit, name)


def main() -> None:
    remote, commit, *words = sys.argv[1:]
    if words:
        start = time.perf_counter()
        found = run_and_push(remote, commit, words[0], words[1:])
        print(found, f"{time.perf_counter() - start:.0f}")
    else:
        check(commit)
        with Repo() as repo:
            open_store(repo)


if __name__ == "__main__":
    run(main)
