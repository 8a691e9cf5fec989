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
    tiny_entry,
    write_entry,
)
from tests.server import STORAGE, Answer, serving

pytestmark = pytest.mark.slow

TENSORFLOW = ("train",)
LIGHT, HEAVY = 0.9, 4.5  # seconds, in which a stage does most of its work
EPOCHS = 40
AT_WORK = {
    "fetch": "Tiny from web",
    "train": f"epoch  1/{EPOCHS}",
}  # text that a stage prints before the part worth interrupting


@dataclass(frozen=True)
class Case:
    """A signal to the stage, DVC or both, some seconds after a text or the stage's start."""

    stage: str
    target: str
    number: signal.Signals
    after: float
    text: str = ""

    def __str__(self) -> str:
        delay = f", {self.after:.3f} s on" if self.text else ""
        return f"{self.number.name} to {self.target} in {self.stage}{delay}"


def cases() -> list[Case]:
    rng = random.Random(4)  # noqa: S311  # the same delays in every run
    signals = [
        (target, number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
        for target in ("stage", "dvc")
    ]
    found = [
        Case(stage, target, number, rng.uniform(0, HEAVY if stage in TENSORFLOW else LIGHT))
        for stage in STAGES
        for target, number in [*signals, ("both", signal.SIGINT)]
    ]
    for stage, seconds in (("fetch", 3), ("train", 1)):
        for target in ("stage", "dvc") * 5:
            found.append(
                Case(stage, target, signal.SIGKILL, rng.uniform(0, seconds), AT_WORK[stage])
            )
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone after a complete run, with a slow server as source; training takes seconds."""
    folder = tmp_path_factory.mktemp("interrupts")
    (folder / "tools").mkdir()
    with serving(folder) as web:
        for name, array in tiny_arrays().items():
            web.serve(
                f"{STORAGE}/tiny/{name}.idx",
                Answer(idx(array), pause=0.008, part=array.size // 100 + 1),
            )
        clone = new_clone(folder / "clean", folder / "tools")
        entry = tiny_entry()
        files = entry["sources"]["local"]["files"]
        entry["sources"] = {"web": {"url": f"{STORAGE}/tiny/", "files": files}}
        write_entry(clone.path, "tiny", entry)
        clone.edit({"train.epochs": EPOCHS})
        for name in ("HTTPS_PROXY", "https_proxy"):
            clone.env[name] = web.proxy
        clone.env["REQUESTS_CA_BUNDLE"] = str(web.authority)
        clone.call("dvc", "repro")
        clone.call("git", "add", "-A")
        clone.call("git", "commit", "-qm", "After")
        yield clone


def content(clone: Clone, stage: str = "") -> dict[str, bytes]:
    """Return all files under the final names of the outputs of a stage, or of all stages."""
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
    """Copy the clone so that one stage has to run again, without entries in the run cache."""
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
    """Wait for the process of the stage; return None if DVC ends first."""
    while dvc.poll() is None:
        with suppress(psutil.Error):  # a process that ended meanwhile
            for process in dvc.children(recursive=True):
                if f"stages.{case.stage}" in process.cmdline():
                    return process
        time.sleep(0.01)
    return None


def runs(process: psutil.Process) -> bool:
    """Return whether a process is running."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def interrupt(clone: Clone, case: Case) -> tuple[bool, str]:
    """Run DVC and send the signal; return whether the stage was running, and the output."""
    log = clone.path.with_name(f"{clone.path.name}.txt")
    env = {**clone.env, "FAMILY": clone.path.name}
    with log.open("w") as file:
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
            return False, log.read_text()
        while case.text not in log.read_text() and runs(stage):
            time.sleep(0.01)
        time.sleep(case.after)
        hit = runs(stage)
        with suppress(ProcessLookupError):  # it ended by itself
            if case.target == "both":
                os.killpg(dvc.pid, case.number)
            elif hit or case.target == "dvc":
                os.kill(dvc.pid if case.target == "dvc" else stage.pid, case.number)
        dvc.wait(timeout=300)
    return hit, log.read_text()


def run_case(clean: Clone, case: Case) -> None:
    hit, tries = False, 0
    while not hit:  # on a busy machine the signal may be late; then retry with a shorter delay
        path = clean.path.parent / f"{case}, try {tries}"
        clone = before(clean, path, case.stage)
        hit, output = interrupt(
            clone, Case(case.stage, case.target, case.number, case.after / 2**tries, case.text)
        )
        tries += 1
        assert tries < 6, output

    start = time.monotonic()
    while left := family(path.name):
        # A stage ends within seconds, on a busy machine within a minute.
        assert time.monotonic() < start + 60, (
            f"still running: {[process.cmdline() for process in left]}"
        )
        time.sleep(0.1)
    if case.target == "dvc" and case.number != signal.SIGINT and time.monotonic() > start + 2:
        # the stage did not run to completion
        assert (
            f"{case.stage}: terminated by SIGTERM"
            in clone.path.with_name(f"{path.name}.txt").read_text()
        )
    whole = content(clean)
    found = content(clone)
    assert found == {name: whole[name] for name in found}, "partial file under a final name"
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
def outcomes(request: pytest.FixtureRequest, clean: Clone) -> Iterator[dict[str, Future[None]]]:
    """Run the selected cases, two at a time."""
    chosen = [
        cast(Case, item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and "case" in item.fixturenames
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {str(case): pool.submit(run_case, clean, case) for case in chosen}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_interrupted_repro_leaves_no_partial_files(
    outcomes: dict[str, Future[None]], case: Case
) -> None:
    """No process keeps running, and the next run gives the results of an uninterrupted one."""
    outcomes[str(case)].result()


def run_alone(
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


def assert_fault(
    clean: Clone, clone: Clone, stage: str, fault: tuple[int, str], reason: str
) -> None:
    code, output = fault
    assert (code, len(output.splitlines())) == (1, 1), output
    assert output.startswith(f"{stage}: ")
    assert reason in output
    whole, found = content(clean), content(clone)
    assert found == {name: whole[name] for name in found}
    assert not [*clone.path.glob("*/.partial-*"), *clone.path.glob("*/.old-*")]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_recovers_from_a_full_disk(clean: Clone, tmp_path: Path, stage: str) -> None:
    """The error is one line."""
    clone = before(clean, tmp_path / "clone", stage)
    # TensorFlow writes small temporary files; the history of all epochs is larger.
    fault = run_alone(clone, stage, limit=1_800 if stage == "train" else 100)
    assert_fault(clean, clone, stage, fault, "File too large: '")
    assert run_alone(clone, stage) == (0, "")
    assert content(clone) == content(clean)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_recovers_from_a_read_only_folder(clean: Clone, tmp_path: Path, stage: str) -> None:
    """The error is one line."""
    clone = before(clean, tmp_path / "clone", stage)
    folder = clone.path / (
        "data" if any(name.startswith("data/") for name in content(clean, stage)) else "reports"
    )
    # Root writes everywhere, but not without the capability to override rights.
    wrap = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
    for path in modes:
        path.chmod(0o555)
    fault = run_alone(clone, stage, *wrap)
    for path, mode in modes.items():
        path.chmod(mode)
    assert_fault(clean, clone, stage, fault, "Permission denied: '")
    assert run_alone(clone, stage) == (0, "")
    assert content(clone) == content(clean)


def test_closing_the_output_pipe_of_dvc_does_no_harm(clean: Clone, tmp_path: Path) -> None:
    clone = before(clean, tmp_path / "clone", "evaluate")
    clone.call("sh", "-c", "dvc repro 2>&1 | head -1")
    clone.call("dvc", "repro")
    assert content(clone) == content(clean)
    assert (clone.path / "dvc.lock").read_bytes() == (clean.path / "dvc.lock").read_bytes()
