"""Experiments on Dask workers and their failures, with real processes.

Most tests use stand-ins for stages, which write their outputs at once. DVC, Git and Dask are real.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import (
    Clone,
    family,
    new_clone,
    outs,
    read_entry,
    read_yaml,
    write_entry,
    write_yaml,
)

pytestmark = pytest.mark.slow
EXPERIMENTS = ["python", "-m", "tools.experiments"]
STAGES = ["fetch", "normalize", "train", "predict", "evaluate"]
METRICS = '{"accuracy": 0.5, "errors": 1, "loss": 1, "ece": 0}'

# A process that reaches a gate records this, and waits while the gate is closed.
STAND_IN = """\
set -e
stage=$1
shift
if [ $stage = train ]; then
    echo >> GATES/trained
    touch GATES/train.reached
    while [ -e GATES/train ]; do sleep 0.1; done
fi
for path in "$@"; do
    mkdir -p $(dirname $path)
    cat params.yaml > $path
    echo $path >> $path
done
[ $stage != evaluate ] || echo 'METRICS' | tee reports/metrics.json > reports/scores.json
"""

# Python runs this at each start. Pushing the data opens files of the DVC remote, and pushing the
# reference runs git push.
HOOK = """
import os, pathlib, sys, time
gates, store = pathlib.Path("GATES"), "STORE"
def wait(gate):
    (gates / f"{gate}.reached").touch()
    while (gates / gate).exists():
        time.sleep(0.1)
def watch(event, args):
    if event == "open" and str(args[0]).startswith(store) and args[1] in ("w", "wb", "wb+"):
        wait("data")
    elif event == "subprocess.Popen" and [*args[1]][:2] == ["git", "push"]:
        wait("reference")
if sys.orig_argv[1:3] == ["-m", "tools.lib.experiment"]:
    sys.addaudithook(watch)
"""


@dataclass
class Place:
    """A project with a bare Git repository and a folder as remotes."""

    clone: Clone
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def trained(self) -> int:
        return len((self.folder / "gates/trained").read_text().splitlines())

    def close(self, gate: str) -> None:
        (self.folder / "gates" / f"{gate}.reached").unlink(missing_ok=True)
        (self.folder / "gates" / gate).touch()

    def open(self, gate: str) -> None:
        (self.folder / "gates" / gate).unlink()

    @contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        pipe, env = subprocess.PIPE, {**self.clone.env, "FAMILY": str(self.folder)}
        with subprocess.Popen(
            command, cwd=self.clone.path, env=env, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def wait(self, condition: Callable[[], object], seconds: float = 300) -> Any:  # noqa: ANN401
        """Wait until a condition holds and return its value."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found

    def reached(self, gate: str) -> None:
        self.wait((self.folder / "gates" / f"{gate}.reached").exists)

    def references(self, name: str) -> dict[str, str]:
        """The references on the Git remote to an experiment, and their commits."""
        lines = self.clone.call("git", "ls-remote", "origin", "refs/exps/*").splitlines()
        listed = {ref: commit for commit, ref in (line.split("\t") for line in lines)}
        return {ref: commit for ref, commit in listed.items() if ref.endswith(f"/{name}")}

    def worker(self) -> psutil.Process | None:
        """The Dask worker that runs a task."""
        for process in family(str(self.folder)):
            with suppress(psutil.Error):
                if [*process.cmdline()[1:2]] == ["-c"] and "lock_clone" in process.cmdline()[2]:
                    return process.parent()
        return None

    def assert_complete(self, name: str) -> None:
        """One reference, the same as here, and its data can be pulled by others."""
        ((reference, found),) = self.references(name).items()
        assert found == self.clone.call("git", "rev-parse", reference).strip()
        other = self.folder / f"other-{name}-{time.time_ns()}"
        self.clone.call("git", "clone", "-q", str(self.folder / "origin"), str(other))
        clone = Clone(other, self.clone.env)
        clone.call("git", "fetch", "-q", "origin", reference)
        clone.call("git", "checkout", "-q", found)
        clone.call("dvc", "pull")

    def tasks(self) -> list[tuple[psutil.Process, str]]:
        """Processes that run experiments, all but those of Dask, and their commands."""
        found = []
        for process in family(str(self.folder)):
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if "bin/dask" not in words and "multiprocessing" not in words:
                    found.append((process, words))
        return found

    def assert_idle(self) -> None:
        """No process is left, and the project is as committed."""
        self.wait(lambda: self.tasks() == [], 60)
        assert self.clone.changed() == set()


def new_place(folder: Path) -> Place:
    for name in ("tools", "gates", "tmp"):
        (folder / name).mkdir()
    (folder / "gates/trained").touch()
    clone = new_clone(folder / "project", folder / "tools")
    clone.env["TMPDIR"] = str(folder / "tmp")
    for name, tiny in (("mnist", "tiny"), ("fashion_mnist", "tiny2")):
        write_entry(clone.path, name, read_entry(clone.path, tiny))
    clone.edit({"dataset": "mnist", "model.pca_knn": {"components": 4, "neighbors": 3}})
    tool = clone.path / "tools/experiments.py"
    tool.write_text(tool.read_text().replace('"pca_knn": 1,', '"pca_knn": 20,'))
    clone.call("git", "branch", "-M", "main")
    clone.call("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin"))
    clone.call("git", "remote", "add", "origin", str(folder / "origin"))
    clone.call("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    (folder / "store/files/md5").mkdir(parents=True)
    return Place(clone, folder)


def publish(place: Place) -> None:
    place.clone.call("git", "add", "-A")
    place.clone.call("git", "commit", "-qm", "Tiny grid")
    place.clone.call("git", "push", "-q", "-u", "origin", "main")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A project whose stages are stand-ins."""
    place = new_place(tmp_path_factory.mktemp("workers"))
    path = place.clone.path
    tool = path / "tools/lib/experiment.py"
    tool.write_text(tool.read_text().replace("(5, 10, 20, 40, 60)", "(2, 4, 8, 8)"))
    pipeline = read_yaml(path / "dvc.yaml")["stages"]
    stages = {name: pipeline[name] for name in STAGES}
    for name, stage in stages.items():
        files = [
            f"{out}/dataset.json" if out.endswith(("raw", "normalized")) else out
            for out in outs(stage)
        ]
        stage["cmd"] = f"sh stand-in.sh {name} {' '.join(files)}"
        read = {"/".join(dep.split("/")[:2]) for dep in stage["deps"] if dep.startswith("data/")}
        stage["deps"] = ["stand-in.sh", *sorted(read)]
    write_yaml(path / "dvc.yaml", {"stages": stages})
    gates = str(place.folder / "gates")
    script = STAND_IN.replace("GATES", gates).replace("METRICS", METRICS)
    (path / "stand-in.sh").write_text(script)
    hook = HOOK.replace("GATES", gates).replace("STORE", str(place.store))
    (place.folder / "tools/sitecustomize.py").write_text(hook)
    publish(place)
    return place


@contextmanager
def cluster(place: Place) -> Iterator[tuple[str, psutil.Popen]]:
    """Run a scheduler and one worker as separate processes."""
    note = place.folder / "scheduler.json"
    note.unlink(missing_ok=True)
    options = ["--scheduler-file", note, "--no-dashboard", "--host", "127.0.0.1"]
    env = {**place.clone.env, "FAMILY": str(place.folder)}
    with (place.folder / "dask.log").open("a") as log:
        start = partial(psutil.Popen, env=env, stdout=log, stderr=log)
        with start(["dask", "scheduler", *options, "--port", "0"]) as scheduler:
            try:
                address = place.wait(lambda: note.exists() and read_yaml(note))["address"]
                with start(["dask", "worker", *options, "--nthreads", "1"]) as worker:
                    try:
                        yield address, scheduler
                    finally:
                        worker.kill()
            finally:
                scheduler.kill()


@pytest.fixture(scope="module")
def address(place: Place) -> Iterator[str]:
    """The address of a scheduler whose worker is restarted when it dies."""
    with cluster(place) as (address, _):
        yield address


def test_workers_and_serial_run_give_equal_results(tmp_path: Path) -> None:
    place = new_place(tmp_path)
    place.clone.call("dvc", "repro")  # dvc.lock has results whose data other clones lack
    publish(place)
    other = Clone(tmp_path / "serial", place.clone.env)
    fresh = Clone(tmp_path / "fresh", place.clone.env)
    for clone in (other, fresh):
        place.clone.call("git", "clone", "-q", str(tmp_path / "origin"), str(clone.path))
    other.call(*EXPERIMENTS, "--only", "linear-0")
    output = fresh.call(*EXPERIMENTS, "--workers", "2", "--only", "linear-0")
    assert output.startswith("0 of 2 experiments are finished, 2 to run\n")
    assert output.count("accuracy") == 2
    head = fresh.call("git", "rev-parse", "HEAD").strip()
    for name in ("mnist-linear-0", "fashion_mnist-linear-0"):
        experiment = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
        for path in ("dvc.lock", "reports/metrics.json"):
            ours, theirs = (
                each.call("git", "show", f"{experiment}:{path}") for each in (fresh, other)
            )
            assert ours == theirs
    assert fresh.changed() == set()
    other.call("dvc", "exp", "remove", "mnist-linear-0")
    other.call(*EXPERIMENTS, "--only", "mnist-linear-0")  # with a run cache, without HEAD's data


def test_push_needs_no_workers_and_runs_once(place: Place) -> None:
    name, trained = "mnist-pca_knn-10", place.trained
    for _ in range(2):
        output = place.clone.call(*EXPERIMENTS, "--push", "origin", "--only", name)
        assert f"1/1  {name}  accuracy 0.5000" in output
    place.assert_complete(name)
    assert place.trained == trained + 1


@pytest.mark.parametrize(("gate", "number"), [("train", 0), ("data", 1), ("reference", 2)], ids=str)
def test_experiment_of_a_killed_worker_is_rerun(
    place: Place, address: str, gate: str, number: int
) -> None:
    name = f"mnist-pca_knn-{number}"
    place.close(gate)
    with place.started(*EXPERIMENTS, "--workers", address, "--only", name) as coordinator:
        place.reached(gate)
        worker = place.worker()
        assert worker
        worker.kill()
        place.open(gate)
        output, errors = coordinator.communicate()
    assert coordinator.returncode == 0, output + errors
    assert output.splitlines()[1].startswith(f"1/1  {name}  accuracy 0.5000  ")
    place.assert_complete(name)
    place.assert_idle()


def test_interrupted_coordinator_continues(place: Place) -> None:
    command = [*EXPERIMENTS, "--workers", "1", "--only", "pca_knn-3"]
    with place.started(*command) as coordinator:
        assert coordinator.stdout
        place.wait(partial(next, (line for line in coordinator.stdout if line.startswith("1/2"))))
        coordinator.send_signal(signal.SIGINT)
        _, errors = coordinator.communicate()
    assert (coordinator.returncode, errors) == (130, "experiments: interrupted\n")
    place.assert_idle()
    assert "1 of 2 experiments are finished, 1 to run" in place.clone.call(*command)
    for name in ("mnist-pca_knn-3", "fashion_mnist-pca_knn-3"):
        place.assert_complete(name)


@pytest.mark.parametrize("trap", ["", "trap '' INT; "], ids=["foreground", "background"])
def test_killed_coordinator_leaves_no_process(place: Place, trap: str) -> None:
    place.close("train")
    command = [*EXPERIMENTS, "--workers", "1", "--only", "mnist-pca_knn-9"]
    with place.started("sh", "-c", f'{trap}exec "$@"', "sh", *command) as coordinator:
        place.reached("train")
        coordinator.kill()
    try:
        place.assert_idle()
    finally:
        place.open("train")


def test_killed_task_is_reported_and_leaves_no_dvc(place: Place) -> None:
    name = "mnist-pca_knn-11"
    place.close("train")
    with place.started(*EXPERIMENTS, "--workers", "1", "--only", name) as coordinator:
        place.reached("train")
        (task,) = (each for each, words in place.tasks() if "-m tools.lib.experiment " in words)
        task.kill()
        output, _ = coordinator.communicate()
    left = [words for _, words in place.tasks()]
    place.open("train")
    assert f"{name}  failed: terminated by SIGKILL" in output
    assert not [words for words in left if "-m dvc " in words]
    place.assert_idle()


def test_two_coordinators_give_one_experiment(place: Place) -> None:
    name, other = "mnist-pca_knn-4", place.folder / "second"
    place.clone.call("git", "clone", "-q", str(place.folder / "origin"), str(other))
    second = Place(Clone(other, place.clone.env), place.folder)
    command = [*EXPERIMENTS, "--workers", "1", "--only", name]
    place.close("train")
    trained = place.trained
    with place.started(*command) as first, second.started(*command) as last:
        place.wait(lambda: place.trained == trained + 2)
        place.open("train")
        outputs = [coordinator.communicate() for coordinator in (first, last)]
    assert [first.returncode, last.returncode] == [0, 0], outputs
    for each in (place, second):
        each.assert_complete(name)
    place.assert_idle()


def test_temporarily_missing_store_is_awaited(place: Place) -> None:
    name = "mnist-pca_knn-5"
    place.close("train")
    with place.started(*EXPERIMENTS, "--workers", "1", "--only", name) as coordinator:
        place.reached("train")
        place.store.rename(place.folder / "away")
        place.open("train")
        time.sleep(10)
        assert not place.store.exists()
        (place.folder / "away").rename(place.store)
        output, errors = coordinator.communicate()
    assert coordinator.returncode == 0, output + errors
    place.assert_complete(name)
    place.assert_idle()


@contextmanager
def unusable(store: Path, *, full: bool) -> Iterator[None]:
    """A folder on which an empty file system is mounted, either full or read-only."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(store)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs permission to mount a tmpfs")
    try:
        (store / "files/md5").mkdir(parents=True)
        if full:
            with suppress(OSError):
                (store / "filler").write_bytes(bytes(2**17))
        else:
            subprocess.run(["mount", "-o", "remount,ro", store], check=True)
        yield
    finally:
        subprocess.run(["umount", store], check=True)


@pytest.mark.parametrize(
    ("full", "number", "reason"),
    [(True, 8, "No space left on device"), (False, 9, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_experiment_survives_an_unusable_store(
    place: Place, full: bool, number: int, reason: str
) -> None:
    name = f"mnist-pca_knn-{number}"
    command = [*EXPERIMENTS, "--workers", "1", "--only", name]
    place.close("train")
    with place.started(*command) as coordinator:
        place.reached("train")
        with unusable(place.store, full=full):
            place.open("train")
            output, _ = coordinator.communicate()
    assert coordinator.returncode == 1
    assert output.splitlines()[1].startswith(f"1/1  {name}  failed: experiment: ")
    assert reason in output.splitlines()[1]
    assert place.references(name) == {}
    trained = place.trained
    place.clone.call(*command)
    assert place.trained == trained  # it was in the worker's clone
    place.assert_complete(name)
    place.assert_idle()


def test_other_versions_are_rejected_before_any_run(place: Place, address: str) -> None:
    lock = place.clone.path / "requirements.lock"
    before, trained = lock.read_text(), place.trained
    lock.write_text(before.replace("\nnumpy==", "\nnumpy==0."))
    publish(place)
    command = [*EXPERIMENTS, "--workers", address, "--only", "mnist-pca_knn-6"]
    errors = place.clone.call(*command, code=1).splitlines()[-1]
    lock.write_text(before)
    publish(place)
    assert errors.startswith("experiments: worker tcp://127.0.0.1:")
    assert "experiment: versions differ from requirements.lock: numpy " in errors
    assert place.trained == trained


def test_lost_scheduler_ends_the_coordinator(place: Place) -> None:
    name = "mnist-pca_knn-7"
    place.close("train")
    with cluster(place) as (address, scheduler):
        command = [*EXPERIMENTS, "--workers", address, "--only", name]
        with place.started(*command) as coordinator:
            place.reached("train")
            scheduler.kill()
            _, errors = coordinator.communicate()
        assert coordinator.returncode == 1
        assert "lost the connection to the Dask scheduler; restart it" in errors.splitlines()[-1]
        place.open("train")
    place.assert_idle()
    with cluster(place) as (address, _):
        place.clone.call(*EXPERIMENTS, "--workers", address, "--only", name)
    place.assert_complete(name)
    place.assert_idle()
