"""Computations of the benchmarks; timings are not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import flop, report, run, runner, workspace
from benchmarks.parts import accuracy, overhead
from benchmarks.settings import Settings
from stages.lib.files import check_arrays


def test_flop_counts_of_tutorial_model() -> None:
    """The counts of the 784-1000-10 MLP match a calculation by hand."""
    layers = (784, 1000, 10)
    assert flop.forward(layers) == 1_588_000
    assert flop.backward(layers) == 1_608_000
    assert flop.epoch(layers, 60_000) == 191_760_000_000
    assert flop.epoch(layers, 60_000, 10_000) == 207_640_000_000


def test_softmax_regression_has_no_input_gradient() -> None:
    assert flop.backward((784, 10)) == flop.forward((784, 10)) == 15_680


RUNS: runner.Runs = {
    "ours": [{"wall": s} for s in (1.0, 2.0, 4.0)],
    "other": [{"wall": s} for s in (3, 6, 12)],
}


def test_slow_rounds_cancel_in_ratios() -> None:
    """Ratios are computed within rounds."""
    found = runner.ratio(RUNS, "other", "ours")
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    assert runner.middle(RUNS, "ours") == 2.0


def test_interval_is_students_t_of_logarithms() -> None:
    values = [1.1, 0.9, 1.3, 1.0]
    expected = stats.ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    found = runner.mean_interval(values)
    assert (found.low, found.high) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert found.value == pytest.approx(stats.gmean(values))


def test_interval_of_one_round_is_unbounded() -> None:
    found = runner.mean_interval([2.0])
    assert (found.low, found.high) == (0, float("inf"))
    check = report.Check("fit", found, 1)
    assert check.verdict == "not shown"
    part = report.Part("Fit", ["", "s"], [], [check], [], "s")
    assert report.content(part, "abc", 1)["checks"][0]["high"] is None


@pytest.mark.parametrize(
    ("low", "high", "at_least", "verdict"),
    [
        (2.5, 2.7, True, "holds"),
        (2.3, 2.4, True, "missed"),
        (2.4, 2.6, True, "not shown"),
        (2.3, 2.5, False, "holds"),
        (2.6, 2.7, False, "missed"),
    ],
)
def test_verdict_requires_the_whole_interval(
    low: float, high: float, at_least: bool, verdict: str
) -> None:
    """A target holds or is missed only if the whole interval lies on one side of it."""
    check = report.Check("fit", runner.Interval(2.5, low, high), 2.5, at_least=at_least)
    assert check.verdict == verdict
    assert str(check).startswith(verdict)


def test_exact_number_needs_no_interval() -> None:
    assert str(report.Check("imports", 0, 0, at_least=False, unit="")) == (
        "holds      imports: 0, at most 0"
    )


def test_time_to_target_ends_with_first_accurate_epoch() -> None:
    result = {"epochs": [2.0, 1.0, 1.0], "accuracies": [0.97, 0.981, 0.98], "seconds": 4.0}
    assert accuracy.seconds_to(0.98, result) == 3.0
    assert accuracy.seconds_to(0.99, result) is None


def test_time_ratio_is_a_bound_if_target_is_missed() -> None:
    """If one side never reaches the target, the ratio is a lower bound."""
    fast = {"epochs": [1.0], "accuracies": [0.99], "seconds": 1.0}
    slow = {"epochs": [5.0], "accuracies": [0.9], "seconds": 5.0}
    runs = {"ours": [fast] * 3, "other": [slow] * 3}
    assert accuracy.time_ratio(runs, "other", "ours", 0.98).value == pytest.approx(5)
    assert accuracy.time_ratio(runs, "ours", "other", 0.98).low == 0


def test_library_settings_and_caches_are_cleared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment loses variables of the measured libraries and keeps others."""
    names = ["JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS", "XLA_FLAGS", "TF_XLA_FLAGS"]
    names += ["TORCHINDUCTOR_CACHE_DIR", "OMP_NUM_THREADS", "KERAS_BACKEND"]
    for name in names:
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("LANG", "kept")
    found = workspace.environment(MORE="more")
    assert "theirs" not in found.values()
    assert (found["LANG"], found["MORE"]) == ("kept", "more")


def test_results_of_other_code_or_machine_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=tmp_path, text=True).strip()

    git("init", "-q")
    git("config", "user.email", "test@example.org")
    git("config", "user.name", "test")
    monkeypatch.setattr(workspace, "ROOT", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.json")
    commits = []
    for text in ("old", "new"):
        (tmp_path / "params.yaml").write_text(text)
        git("add", ".")
        git("commit", "-qm", text)
        commits.append(workspace.commit())
    (tmp_path / "README.md").write_text("not measured")
    git("add", ".")
    git("commit", "-qm", "README")
    parts = {"fit": {"commit": commits[0]}, "accuracy": {"commit": commits[1]}, "pipeline": {}}
    run.RESULTS.write_text(json.dumps({"machine": {"CPU": "this"}, "parts": parts}))
    assert run.current_parts({"CPU": "this"}) == {"accuracy": {"commit": commits[1]}}
    assert run.current_parts({"CPU": "other"}) == {}
    for path in ("tools/dataset.py", "tools/lib/imports.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("changed")
        git("add", ".")
        git("commit", "-qm", path)
        assert not workspace.is_current(commits[1])
        git("revert", "--no-edit", "HEAD")
    (tmp_path / "params.yaml").write_text("edited")
    with pytest.raises(RuntimeError, match="uncommitted changes"):
        workspace.commit()


def test_finished_parts_survive_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part has an empty folder of its own."""

    def works(settings: Settings) -> report.Part:
        (settings.scratch / "project").mkdir()
        return report.Part("Works", ["", "s"], [["ours", "1"]], [], [("ours", 1.0)], "seconds")

    def fails(settings: Settings) -> report.Part:
        (settings.scratch / "project").mkdir()
        raise RuntimeError("failed on purpose")

    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(run, "PARTS", {"works": works, "fails": fails})
    monkeypatch.setattr(run, "fetch_data", lambda scratch: None)
    monkeypatch.setattr(run, "peers", dict)  # the environment with PyTorch and JAX takes 6 GB
    monkeypatch.setattr(run, "commit", lambda: "HEAD")
    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(RuntimeError, match="failed on purpose"):
        run.main()
    assert [*json.loads(run.RESULTS.read_text())["parts"]] == ["works"]
    assert run.RESULTS.with_suffix(".png").exists()


def test_commands_alternate_after_uncounted_warmup(tmp_path: Path) -> None:
    commands = [
        runner.Command(
            name,
            ["sh", "-c", f"echo {name}{{round}} >> turns; echo '{{\"seconds\": 1}}'"],
            tmp_path,
        )
        for name in ("a", "b")
    ]
    runs = runner.in_turn(commands, 2)
    assert (tmp_path / "turns").read_text().split() == ["a0", "b0", "a0", "b0", "a1", "b1"]
    assert [result["seconds"] for result in runs["a"]] == [1, 1]


def test_failed_command_raises_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)broken.*exit code 3.*no such luck"):
        runner.run(runner.Command("broken", ["sh", "-c", "echo no such luck; exit 3"], tmp_path), 0)


def test_peak_memory_excludes_parent_process(tmp_path: Path) -> None:
    held = np.ones(60_000_000)  # half a gigabyte here
    small, large = (
        runner.run(runner.Command("it", [sys.executable, "-S", "-c", code], tmp_path), 0)["peak"]
        for code in ("pass", "b = bytearray(200_000_000)")
    )
    assert held.nbytes > 400e6
    assert small < 50e6
    assert 200e6 < large < 250e6


def test_figure_shows_every_part_with_its_bars() -> None:
    bars = [("ours", 1.0), ("transcription", 2.0)]
    part = report.Part("Fit: five ways", ["", "s"], [["ours", "1"]], [], bars, "seconds")
    machine = {"CPU": "c", "cores": "2", "vectors": "v"}
    figure = report.results_figure(machine, {"fit": report.content(part, "abc", 3)})
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Fit"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "transcription"]


def test_normalize_can_read_synthetic_images(tmp_path: Path) -> None:
    workspace.write_synthetic(tmp_path / "raw", 30, 10, list("0123456789"))
    names = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    check_arrays(tmp_path / "raw/dataset.json", *names)
    assert np.load(tmp_path / "raw/test_images.npy").shape == (10, 28, 28)


@pytest.mark.parametrize(
    ("code", "processes"),
    [
        ("import tensorflow", 1),
        ("from importlib.util import find_spec; find_spec('tensorflow')", 0),
    ],
)
def test_only_imports_of_tensorflow_are_counted(tmp_path: Path, code: str, processes: int) -> None:
    (tmp_path / "tensorflow.py").touch()
    (tmp_path / "sitecustomize.py").write_text(overhead.SPY)
    imports = tmp_path / "imports"
    env = {"PYTHONPATH": str(tmp_path), "TENSORFLOW_IMPORTS": str(imports)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert (len(imports.read_text().splitlines()) if imports.exists() else 0) == processes
