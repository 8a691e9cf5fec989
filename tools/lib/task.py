"""Run an experiment of a commit in a clone of the project, and keep the clone.

workers.py sends the text of this file to Dask workers, so they need no files of the project, and
run the code of the commit. Each task locks its clone.
"""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import IO

from dask.system import CPU_COUNT

RETRY_DELAYS = (5, 10, 20, 40, 60)  # seconds, as in experiment.py
THREAD_VARIABLES = (
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def lock_clone(base: Path) -> tuple[Path, IO[str]]:
    """Lock the first clone in a folder that no other task uses; return it and its open lock."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        sys.exit(f"{base} belongs to another user; set TMPDIR to a folder of your own")
    for number in count():
        lock = (base / f"{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            break
    return base / str(number), lock


def git(folder: Path, *words: str) -> None:
    """Run a Git command in a clone; exit with its error if it fails."""
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {words[0]}: {' '.join(done.stderr.split())}")


def fetch(folder: Path, commit: str) -> None:
    """Fetch unless the clone has the commit; retry if the remote is temporarily unreachable."""
    command = ["git", "-C", str(folder), "cat-file", "-e", f"{commit}^{{commit}}"]
    if not subprocess.run(command, capture_output=True).returncode:
        return
    words = ("fetch", "--quiet", "--prune", "origin")
    command = ["git", "-C", str(folder), *words]
    for delay in RETRY_DELAYS:
        if not subprocess.run(command, capture_output=True).returncode:
            return
        time.sleep(delay)
    git(folder, *words)


def check_out(folder: Path, url: str, commit: str, project: str) -> None:
    """Create or update a clone and check out a commit; an earlier task may have been killed."""
    folder.mkdir(exist_ok=True)
    for lock in (folder / ".git").rglob("*.lock"):
        lock.unlink()
    state = folder / project / ".dvc/tmp"
    shutil.rmtree(state / "exps", ignore_errors=True)  # copies of the data
    (state / "rwlock").unlink(missing_ok=True)
    git(folder, "init", "--quiet")
    git(folder, "update-ref", "-d", "refs/exps/stash")  # an experiment that did not start
    git(folder, "config", "fetch.unpackLimit", "1")  # a fetch adds all objects or none
    git(folder, "config", "remote.origin.url", url)
    git(folder, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    fetch(folder, commit)
    git(folder, "checkout", "--quiet", "--force", "--detach", commit)


def main(url: str, commit: str, project: str, base: str, tasks: str, *words: str) -> None:
    """Run `tools.lib.experiment`, and terminate it when the worker dies.

    Args:
        url: Address of the Git remote.
        commit: Commit to check out.
        project: The project's folder in the repository.
        base: Folder of the clones; empty for one in the system's temporary folder.
        tasks: Number of tasks that share the cores of this machine.
        words: Arguments of the module after REMOTE and COMMIT.
    """
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as in Git hooks
        os.environ.pop(name, None)
    # Detect the worker's death by its end of the output pipe. The parent's process ID is not
    # enough: the worker may die before this process starts, or have the ID 1 in a container.
    output = select.poll()
    output.register(sys.stdout, 0)
    folder = Path(base or f"{tempfile.gettempdir()}/experiments-{os.getuid()}")
    clone, lock = lock_clone(folder)
    check_out(clone, url, commit, project)
    share = os.environ.get(THREAD_VARIABLES[0]) or str(max(1, CPU_COUNT // int(tasks)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.lib.experiment", "origin", commit, *words],
        cwd=clone / project,
        env=os.environ | dict.fromkeys(THREAD_VARIABLES, share),
        pass_fds=[lock.fileno()],  # keeps the clone locked until the process exits
    )
    while process.poll() is None:
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            if output.poll(0):  # the worker is gone
                process.terminate()
                process.wait()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        sys.exit(f"terminated by {name}")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
