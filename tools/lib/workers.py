"""Run experiments on Dask workers, which push them to the Git and DVC remotes.

Workers receive only strings: the text of task.py and its arguments.
"""

import hashlib
import logging
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, Future, LocalCluster
from distributed.scheduler import KilledWorker
from dvc.repo import Repo

from stages.lib.stage import StageError
from tools.lib.experiment import (
    call,
    dvc,
    find,
    open_store,
    reference,
    references,
    remote_faults,
    store_address,
    with_retries,
)

REMOTE = "origin"
CLONES = Path(".dvc/tmp/workers")
TASK = Path(__file__).with_name("task.py")


def prepare(commit: str) -> str:
    """Check that workers can fetch a commit and its data, and push the run cache.

    Returns:
        Address of the Git remote.

    Raises:
        StageError: A remote or the commit is missing, or workers cannot use an address.
    """
    if REMOTE not in call("git", "remote").split():
        raise StageError(f"workers need a Git remote; run `git remote add {REMOTE} ADDRESS`")
    url = call("git", "remote", "get-url", REMOTE).strip()
    if re.match("https?://[^/]*@", url):
        raise StageError(
            f"Git remote {REMOTE}: its URL contains credentials, which the workers' process lists "
            "would show; configure a Git credential helper instead"
        )
    if ":" not in url and not Path(url).is_absolute():
        raise StageError(
            f"Git remote {REMOTE}: workers cannot resolve the relative path {url}; "
            f"run `git remote set-url {REMOTE} {Path(url).resolve()}`"
        )
    call("git", "fetch", "--quiet", "--prune", REMOTE)
    if not call("git", "for-each-ref", "--contains", commit, f"refs/remotes/{REMOTE}"):
        raise StageError(
            f"{REMOTE} does not have commit {commit[:7]}; run `git push {REMOTE} HEAD`"
        )
    with Repo() as repo:
        store_address(repo)
        open_store(repo)
        dvc("push", "--run-cache")
        check_run_cache(repo)
    return url


def check_run_cache(repo: Repo) -> None:
    """Check that the DVC remote has the run cache; DVC ignores errors when it pushes it.

    Raises:
        StageError: Files are missing.
    """
    store = repo.cloud.get_remote_odb(hash_name="md5-dos2unix")  # the run cache has no other hash
    ours = {path.name for path in Path(repo.cache.legacy.path).glob("runs/*/*/*")}
    with remote_faults():
        theirs = {path.rsplit("/", 1)[-1] for path in store.fs.find(f"{store.path}/runs")}
    if missing := ours - theirs:
        raise StageError(f"DVC remote: {len(missing)} files of the run cache could not be written")


@contextmanager
def connect(workers: str) -> Iterator[Client]:
    """Connect to the scheduler at an address, or start a number of workers on this machine.

    Raises:
        StageError: There is no scheduler, or the connection to it is lost.
    """
    if workers.isdecimal() and int(workers) < 1:
        raise StageError(f"--workers: expected at least 1 or an address, found {workers}")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # this module reports failures
    if not workers.isdecimal():
        try:
            client = Client(workers)
        except (OSError, ValueError) as error:
            raise StageError(
                f"no Dask scheduler at {workers} ({error}); start one with `dask scheduler`"
            ) from error
        try:
            with client:
                yield client
        except CancelledError as error:
            raise StageError(
                "lost the connection to the Dask scheduler; "
                "restart it and run the same command again"
            ) from error
        return
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # for "python"
    # Each task runs in its own process, so the workers can be threads.
    with (
        LocalCluster(
            n_workers=int(workers),
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",  # a free port, for this machine only
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


class Tasks:
    """Experiments of one commit on a cluster, as `open_tasks` returns it.

    Args:
        client: Client of the cluster.
        commit: Commit of the project that is on the Git remote.
        url: Address of the Git remote.
        clones: Folder of the workers' clones; empty for their system's temporary folder.
    """

    def __init__(self, client: Client, commit: str, url: str, clones: str) -> None:
        self.client, self.commit = client, commit
        self.workers = client.scheduler_info(n_workers=-1)["workers"]
        hosts: Counter[str] = Counter()
        for worker in self.workers.values():
            hosts[worker["host"]] += worker["nthreads"]
        project = call("git", "rev-parse", "--show-prefix").strip()
        self.project = hashlib.sha256(f"{url} {project}".encode()).hexdigest()[:8]
        tasks = str(max(hosts.values(), default=1))
        self.command = ["python", "-c", TASK.read_text(encoding="utf-8")]
        self.command += [url, commit, project, clones, tasks]

    def threads(self) -> dict[str, int]:
        """Return the number of experiments that each of the present workers runs at once."""
        try:
            return dict(self.client.nthreads())
        except OSError as error:
            raise CancelledError from error

    def submit(self, name: str, changes: Sequence[str]) -> Future:
        """Submit an experiment; equal names share one task, even from several coordinators.

        Args:
            name: Name of the experiment.
            changes: Overrides of params.yaml, `KEY=VALUE`.
        """
        return self._run(name, *changes, key=f"{self.project}-{self.commit}-{name}")

    def _run(self, *words: str, key: str, workers: Sequence[str] = ()) -> Future:
        """Run `tools.lib.experiment` on a worker, with these arguments after REMOTE and COMMIT."""
        return self.client.submit(
            subprocess.run,
            [*self.command, *words],
            capture_output=True,
            text=True,
            start_new_session=True,  # Ctrl-C is for the coordinator
            key=key,
            workers=[*workers] or None,
        )

    def check(self) -> None:
        """Check the environment of each worker; wait for busy workers.

        Raises:
            StageError: The environment of a worker differs. Each such worker's message is an
                argument.
        """
        if any(self.client.processing().values()):
            print("checking the workers; busy ones first finish their experiment", flush=True)
        now = time.time_ns()
        checks = {
            worker: self._run(key=f"check-{worker}-{now}", workers=[worker])
            for worker in self.workers
        }
        faults = []
        for worker, check in checks.items():
            while not check.done() and worker in self.threads():
                time.sleep(0.2)
            if not check.done():  # the worker has left
                continue
            try:
                wait_for(check)
            except StageError as error:
                faults.append(f"worker {worker}: {error}")
        if faults:
            raise StageError(*faults)

    def finish(self, task: Future, name: str) -> tuple[str, str]:
        """Wait for an experiment, verify it on the remotes, and pull its reference.

        Returns:
            The experiment's commit, and its duration on the worker in seconds.

        Raises:
            StageError: The experiment failed, or is not complete on the remotes.
        """
        words = wait_for(task).split()
        # Another worker may be uploading the same objects again: see docs/remotes.md.
        return with_retries(pull_complete, REMOTE, self.commit, name), words[-1]


@contextmanager
def open_tasks(workers: str, commit: str, url: str) -> Iterator[Tasks]:
    """Connect to workers and check them.

    Args:
        workers: Number of workers on this machine, or the address of a scheduler.
        commit: Commit to run.
        url: Address of the Git remote, from `prepare`.

    Raises:
        StageError: There is no scheduler, or a worker's environment differs.
    """
    with connect(workers) as client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            print("no workers yet; experiments start when one joins", flush=True)
            client.wait_for_workers(1)
        tasks = Tasks(client, commit, url, str(CLONES.resolve()) if workers.isdecimal() else "")
        tasks.check()
        yield tasks


def wait_for(task: Future) -> str:
    """Wait for a task, and return its stdout.

    Raises:
        StageError: The task failed. The message is the last line of its stderr.
    """
    try:
        done = task.result()
    except KilledWorker as error:
        raise StageError(
            "its workers were killed repeatedly, possibly for lack of memory"
        ) from error
    except FileNotFoundError as error:
        raise StageError(
            f"no {error.filename} on the worker's PATH; activate the environment there"
        ) from error
    except OSError as error:
        raise StageError(f"the worker cannot start it: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise StageError(lines[-1])
    return str(done.stdout)


def pull(remote: str, commit: str, name: str) -> str:
    """Pull the reference of an experiment if it is complete on the remotes; return its commit."""
    found = find(remote, commit, name)
    if found:
        call("git", "update-ref", reference(commit, name), found)
    return found


def pull_complete(remote: str, commit: str, name: str) -> str:
    """Pull the reference of an experiment; return its commit.

    Raises:
        StageError: It is not complete on the remotes.
    """
    found = pull(remote, commit, name)
    if not found:
        raise StageError(
            f"{remote} or the DVC remote lacks a part of the experiment; run the same command again"
        )
    return found


def pull_finished(commit: str, names: Sequence[str]) -> set[str]:
    """Pull the references of experiments that are complete on the remotes; return their names."""
    below = reference(commit, "")
    listed = references(REMOTE, f"{below}*")
    names = [name for name in names if f"{below}{name}" in listed]
    return {name for name in names if with_retries(pull, REMOTE, commit, name)}
