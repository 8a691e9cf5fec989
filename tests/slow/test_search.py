"""A search that DVC runs on the tiny dataset, in this clone and on workers."""

import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.helpers import Clone, family, new_clone, write_yaml

pytestmark = pytest.mark.slow
SPACE = {  # of the model that trains fastest
    "set": {"model.kind": "pca_knn"},
    "vary": {
        "model.pca_knn.components": {"low": 2, "high": 15},
        "model.pca_knn.neighbors": {"low": 1, "high": 9},
    },
}
SEARCH = ["python", "-m", "tools.search", "--space", "space.yaml"]
LINE = re.compile(r"(\d)/(\d)  (tiny-search-[0-9a-f]{6}-\d)  validation\.loss \d\.\d{4}  \d+ s")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project with a search space, and folders as its Git and DVC remotes."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "tools").mkdir()
    clone = new_clone(folder / "project", folder / "tools")
    write_yaml(clone.path / "space.yaml", SPACE)
    clone.call("git", "branch", "-M", "main")
    clone.call("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin"))
    clone.call("git", "remote", "add", "origin", str(folder / "origin"))
    clone.call("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    (folder / "store/files/md5").mkdir(parents=True)
    publish(clone)
    return clone


def publish(clone: Clone) -> None:
    clone.call("git", "add", "-A")
    clone.call("git", "commit", "-q", "--allow-empty", "-m", "Search")
    clone.call("git", "push", "-q", "-u", "origin", "main")


def names(clone: Clone) -> list[str]:
    return sorted(clone.call("dvc", "exp", "list", "--name-only").split())


def interrupt(clone: Clone, *options: str) -> list[str]:
    """Interrupt a search after its first trial, and return what it printed."""
    pipe, env = subprocess.PIPE, {**clone.env, "FAMILY": str(clone.path)}
    command = [*SEARCH, *options]
    with subprocess.Popen(
        command, cwd=clone.path, env=env, stdout=pipe, stderr=pipe, text=True
    ) as started:
        assert started.stdout
        lines = [started.stdout.readline()]
        while not LINE.match(lines[-1]):
            assert started.poll() is None
            lines.append(started.stdout.readline())
        started.send_signal(signal.SIGINT)
        rest, errors = started.communicate(timeout=120)
    assert (started.returncode, errors) == (130, "search: interrupted\n")
    # Tasks end a second after their worker, later on a busy machine.
    psutil.wait_procs(family(str(clone.path)), timeout=30)
    assert family(str(clone.path)) == []
    return [line.strip() for line in lines] + rest.splitlines()


def test_interrupted_search_continues(clone: Clone) -> None:
    lines = interrupt(clone, "--trials", "3")
    assert lines[0] == "0 of 3 trials are finished, 3 to run"
    assert len(names(clone)) == 1
    lines = clone.call(*SEARCH, "--trials", "3", "--confirm", "2").splitlines()
    assert lines[0] == "1 of 3 trials are finished, 2 to run"
    trials = [found[3] for line in lines if (found := LINE.fullmatch(line))]
    best = lines[3].removesuffix(":").split()[-1]
    assert lines[3] == f"3 trials finished; the best is {best}:"
    assert [trial[-2:] for trial in trials] == ["-1", "-2"]
    assert len(names(clone)) == 5
    assert lines[-1].startswith("2 new seeds: validation.loss ")
    assert clone.changed() == set()
    output = clone.call("python", "-m", "tools.compare", best, f"{best}-seed1", f"{best}-seed2")
    assert "| tiny    | " in output
    clone.call("dvc", "exp", "apply", best)
    parameters = re.findall(r"model\.(pca_knn\.\w+): (\d+)", "\n".join(lines))
    knn = (clone.path / "params.yaml").read_text().split("pca_knn:")[-1]
    for key, value in parameters:
        assert f"{key.split('.')[-1]}: {value}" in knn
    clone.call("git", "restore", ".")


def test_search_on_workers_continues_in_another_clone(clone: Clone, tmp_path: Path) -> None:
    publish(clone)
    lines = interrupt(clone, "--trials", "4", "--workers", "2")
    assert lines[0] == "0 of 4 trials are finished, 4 to run"
    other = Clone(tmp_path / "other", clone.env)
    clone.call("git", "clone", "-q", str(clone.path.parent / "origin"), str(other.path))
    lines = other.call(*SEARCH, "--trials", "4", "--workers", "2").splitlines()
    done = int(lines[0].split()[0])
    assert 1 <= done <= 2
    assert lines[0] == f"{done} of 4 trials are finished, {4 - done} to run"
    assert [line[:3] for line in lines if LINE.fullmatch(line)] == [
        f"{number}/4" for number in range(done + 1, 5)
    ]
    assert [name[-2:] for name in names(other)] == ["-0", "-1", "-2", "-3"]
    assert other.changed() == set()
    lines = clone.call(*SEARCH, "--trials", "4", "--workers", "2").splitlines()
    assert lines[0] == "4 of 4 trials are finished, 0 to run"
    assert names(clone) == names(other)
