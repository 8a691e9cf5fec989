"""Stages under real DVC that are interrupted, or lack disk space or permissions."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.helpers import (
    STAGES,
    Clone,
    family,
    idx,
    new_clone,
    outs,
    read_yaml,
    tiny_arrays,
    write_yaml,
)
from tests.server import STORAGE, Answer, serving

pytestmark = pytest.mark.slow

TENSORFLOW = ("train",)
LIGHT, HEAVY = 0.9, 4.5  # seconds within which most of a stage's work falls
EPOCHS = 40
AT_WORK = {
    "fetch": "Tiny from web",
    "train": f"epoch  1/{EPOCHS}",
}  # what a stage says before the part worth interrupting


@dataclass(frozen=True)
class Case:
    """A signal to the stage, DVC or both, some seconds after a text or the stage's start."""

    stage: str
    whom: str
    number: signal.Signals
    after: float
    text: str = ""

    def __str__(self) -> str:
        delay = f", {self.after:.3f} s on" if self.text else ""
        return f"{self.number.name} to {self.whom} in {self.stage}{delay}"


def cases() -> list[Case]:
    rng = random.Random(4)  # noqa: S311  # moments, the same in every run
    ways = [
        (whom, number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
        for whom in ("stage", "dvc")
    ]
    found = [
        Case(stage, whom, number, rng.uniform(0, HEAVY if stage in TENSORFLOW else LIGHT))
        for stage in STAGES
        for whom, number in [*ways, ("both", signal.SIGINT)]
    ]
    for stage, seconds in (("fetch", 3), ("train", 1)):
        for whom in ("stage", "dvc") * 5:
            found.append(Case(stage, whom, signal.SIGKILL, rng.uniform(0, seconds), AT_WORK[stage]))
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone after a whole run, with a slow server as source and a training of seconds."""
    folder = tmp_path_factory.mktemp("interrupts")
    (folder / "tools").mkdir()
    with serving(folder) as web:
        for name, array in tiny_arrays().items():
            web.serve(
                f"{STORAGE}/tiny/{name}.idx",
                Answer(idx(array), pause=0.008, part=array.size // 100 + 1),
            )
        clone = new_clone(folder / "clean", folder / "tools")
        datasets = read_yaml(clone.path / "datasets.yaml")
        files = datasets["tiny"]["sources"]["local"]["files"]
        datasets["tiny"]["sources"] = {"web": {"url": f"{STORAGE}/tiny/", "files": files}}
        write_yaml(clone.path / "datasets.yaml", datasets)
        clone.edit({"train.epochs": EPOCHS})
        for name in ("HTTPS_PROXY", "https_proxy"):
            clone.env[name] = web.proxy
        clone.env["REQUESTS_CA_BUNDLE"] = str(web.authority)
        clone.call("dvc", "repro")
        clone.call("git", "add", "-A")
        clone.call("git", "commit", "-qm", "After")
        yield clone


def content(clone: Clone, stage: str = "") -> dict[str, bytes]:
    """Every file of the outs of a stage, or of all, that stands under its final name."""
    entries = read_yaml(clone.path / "dvc.yaml")["stages"]
    names = [out for name, entry in entries.items() if stage in (name, "") for out in outs(entry)]
    paths = [
        path for name in names for path in (clone.path / name, *(clone.path / name).rglob("*"))
    ]
    return {
        path.relative_to(clone.path).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file()
    }


def before(clean: Clone, path: Path, stage: str) -> Clone:
    """A copy of the clone in which one stage is to run again, and DVC remembers nothing of it."""
    shutil.copytree(clean.path, path, symlinks=True)
    for runs in (path / ".dvc/cache/runs").glob("*/*"):
        if any(f"run.sh {stage}\n" in run.read_text() for run in runs.iterdir()):
            shutil.rmtree(runs)
    lock = read_yaml(path / "dvc.lock")
    (code,) = (dep for dep in lock["stages"][stage]["deps"] if dep["path"] == f"stages/{stage}.py")
    text = (path / "dvc.lock").read_text()
    start = text.index(f"\n  {stage}:\n")
    (path / "dvc.lock").write_text(text[:start] + text[start:].replace(code["md5"], "f" * 32, 1))
    return Clone(path, clean.env)


def stage_below(dvc: psutil.Popen, case: Case) -> psutil.Process | None:
    """The stage's process, once it has started; None where it ended unseen."""
    while dvc.poll() is None:
        with suppress(psutil.Error):  # one that ended while it was looked at
            for process in dvc.children(recursive=True):
                if f"stages.{case.stage}" in process.cmdline():
                    return process
        time.sleep(0.01)
    return None


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended, nor ends while it is looked at."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def interrupt(clone: Clone, case: Case) -> tuple[bool, str]:
    """Run DVC and send the signal; return whether the stage was running, and the output."""
    said = clone.path.with_name(f"{clone.path.name}.txt")
    env = {**clone.env, "FAMILY": clone.path.name}
    with said.open("w") as file:
        dvc = psutil.Popen(
            ["dvc", "repro"],
            cwd=clone.path,
            env=env,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        stage = stage_below(dvc, case)
        if stage is None:
            return False, said.read_text()
        while case.text not in said.read_text() and runs(stage):
            time.sleep(0.01)
        time.sleep(case.after)
        hit = runs(stage)
        with suppress(ProcessLookupError):  # it ended by itself
            if case.whom == "both":
                os.killpg(dvc.pid, case.number)
            elif hit or case.whom == "dvc":
                os.kill(dvc.pid if case.whom == "dvc" else stage.pid, case.number)
        dvc.wait(timeout=300)
    return hit, said.read_text()


def go_through(clean: Clone, case: Case) -> None:
    hit, tries = False, 0
    while not hit:  # a busy machine may be late: then a little earlier
        path = clean.path.parent / f"{case}, try {tries}"
        clone = before(clean, path, case.stage)
        hit, said = interrupt(
            clone, Case(case.stage, case.whom, case.number, case.after / 2**tries, case.text)
        )
        tries += 1
        assert tries < 6, said

    start = time.monotonic()
    while left := family(path.name):
        # A stage ends within seconds, on a busy machine within a minute.
        assert time.monotonic() < start + 60, (
            f"still running: {[process.cmdline() for process in left]}"
        )
        time.sleep(0.1)
    if case.whom == "dvc" and case.number != signal.SIGINT and time.monotonic() > start + 2:
        # not by coming to its own end
        assert (
            f"{case.stage}: ended by SIGTERM"
            in clone.path.with_name(f"{path.name}.txt").read_text()
        )
    whole = content(clean)
    found = content(clone)
    assert found == {name: whole[name] for name in found}, "half a file under a final name"
    if case.stage == "evaluate":
        shown = (
            json.loads(clone.call("dvc", "metrics", "show", "--json")).get("", {}).get("data", {})
        )
        values = shown.get("reports/metrics.json", {}).get("data")
        assert values in (None, json.loads(whole["reports/metrics.json"]))
    clone.call("dvc", "repro")
    assert content(clone) == whole
    assert (clone.path / "dvc.lock").read_bytes() == (clean.path / "dvc.lock").read_bytes()
    assert not [*clone.path.glob("*/.partial-*"), *clone.path.glob("*/.old-*")]
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def gone_through(request: pytest.FixtureRequest, clean: Clone) -> Iterator[dict[str, Future[None]]]:
    """The cases that are to be tested, two at a time."""
    chosen = [
        cast(Case, item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and "case" in item.fixturenames
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {str(case): pool.submit(go_through, clean, case) for case in chosen}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_after_an_interruption_nothing_runs_on_nothing_is_half_and_the_next_run_is_as_a_first(
    gone_through: dict[str, Future[None]], case: Case
) -> None:
    gone_through[str(case)].result()


def lone(
    clone: Clone, stage: str, *wrap: str, limit: int = resource.RLIM_INFINITY
) -> tuple[int, str]:
    """Run a stage without DVC, with a file size limit; return its exit code and stderr."""
    ended = subprocess.run(
        [*wrap, sys.executable, "-m", f"stages.{stage}"],
        cwd=clone.path,
        env=clone.env,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
        ),
    )
    return ended.returncode, ended.stderr


def refuses_and_recovers(
    clean: Clone, clone: Clone, stage: str, fault: tuple[int, str], words: str
) -> None:
    code, said = fault
    assert (code, len(said.splitlines())) == (1, 1), said
    assert said.startswith(f"{stage}: ")
    assert words in said
    whole, found = content(clean), content(clone)
    assert found == {name: whole[name] for name in found}
    assert not [*clone.path.glob("*/.partial-*"), *clone.path.glob("*/.old-*")]


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_forgotten_once_there_is_room(
    clean: Clone, tmp_path: Path, stage: str
) -> None:
    clone = before(clean, tmp_path / "clone", stage)
    # TensorFlow writes small temporary files; the history of all epochs is larger.
    fault = lone(clone, stage, limit=1_800 if stage == "train" else 100)
    refuses_and_recovers(clean, clone, stage, fault, "File too large: '")
    assert lone(clone, stage) == (0, "")
    assert content(clone) == content(clean)


@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_folder_is_one_line_and_forgotten_once_it_can_be_written(
    clean: Clone, tmp_path: Path, stage: str
) -> None:
    clone = before(clean, tmp_path / "clone", stage)
    folder = clone.path / (
        "data" if any(name.startswith("data/") for name in content(clean, stage)) else "reports"
    )
    # Root writes everywhere, but not without the capability to override rights.
    wrap = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
    for path in modes:
        path.chmod(0o555)
    fault = lone(clone, stage, *wrap)
    for path, mode in modes.items():
        path.chmod(mode)
    refuses_and_recovers(clean, clone, stage, fault, "Permission denied: '")
    assert lone(clone, stage) == (0, "")
    assert content(clone) == content(clean)


def test_a_reader_that_leaves_dvc_early_breaks_nothing(clean: Clone, tmp_path: Path) -> None:
    clone = before(clean, tmp_path / "clone", "evaluate")
    clone.call("sh", "-c", "dvc repro 2>&1 | head -1")
    clone.call("dvc", "repro")
    assert content(clone) == content(clean)
    assert (clone.path / "dvc.lock").read_bytes() == (clean.path / "dvc.lock").read_bytes()
