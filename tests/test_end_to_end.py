"""The whole pipeline by real DVC in a Git clone of its own, on the tiny data set: what runs again, what compares."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert

from stages.lib.sources import digest
from tests.conftest import (
    CLASSES,
    COUNTS,
    ROOT,
    idx,
    make_tiny,
    read_yaml,
    set_params,
    tiny_arrays,
    tiny_entry,
    write_yaml,
)

REPORTING = ["evaluate", "plot", "extract_errors"]
FROM_TRAIN = ["train", "tensorflow", "predict", "tensorflow", *REPORTING]
ALL = ["fetch", "normalize", *FROM_TRAIN]

# Python reads this at each start: what DVC only says about a stage, the stage's own process tells.
WATCH = """
import os, sys
def note(word):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(word + "\\n")
if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    note(sys.orig_argv[2].removeprefix("stages."))
sys.addaudithook(lambda event, args: note("tensorflow") if event == "import" and args[0] == "tensorflow" else None)
"""


@dataclass
class Clone:
    """A Git repository with the project in it, and the environment of its commands."""

    path: Path
    env: dict[str, str]

    def call(self, *command: str, code: int = 0) -> str:
        """Runs a command, whose exit code must be `code`; what it says on stdout, or on both where it must fail."""
        result = subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr * (code != 0)

    def json(self, *command: str) -> Any:  # noqa: ANN401  # whatever DVC prints
        return json.loads(self.call(*command, "--json"))

    def ran(self, *command: str, code: int = 0) -> list[str]:
        """The stages that ran under a command, in order, and after each whether it imported TensorFlow."""
        watched = Path(self.env["WATCHED"])
        watched.write_text("")
        self.call(*command, code=code)
        return watched.read_text().split()

    def changed(self) -> set[str]:
        """Files that Git sees changed or new."""
        return {line[3:] for line in self.call("git", "status", "--porcelain", "-uall").splitlines()}

    def edit(self, values: dict[str, object]) -> None:
        set_params(self.path, values)


def new_clone(path: Path, tools: Path) -> Clone:
    """A commit of the working tree's files, pointed at the tiny data set, with a second one, tiny2; nothing run yet."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    env |= {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "DVC_SITE_CACHE_DIR": str(tools / "site")}
    env |= {"DVC_GLOBAL_CONFIG_DIR": str(tools / "none"), "DVC_SYSTEM_CONFIG_DIR": str(tools / "none")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(tools)}
    env |= {"WATCHED": str(tools / f"{path.name}.txt")}
    clone = Clone(path, env)
    names = Clone(ROOT, env).call("git", "ls-files", "-coz", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
    make_tiny(path)
    negatives = {name: 255 - a if name.endswith("images") else a for name, a in tiny_arrays().items()}
    entry = tiny_entry() | {"title": "Tiny 2", "sha256": {name: digest(a) for name, a in negatives.items()}}
    entry["sources"]["local"]["folder"] = "tiny2"
    (path / "tiny2").mkdir()
    for name, array in negatives.items():
        (path / f"tiny2/{name}.idx").write_bytes(idx(array))
    write_yaml(path / "datasets.yaml", read_yaml(path / "datasets.yaml") | {"tiny2": entry})
    clone.call("git", "init", "-q")
    clone.call("git", "add", "-A")
    clone.call("git", "commit", "-qm", "Before")
    return clone


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Clone, list[str]]]:
    """Two clones with the results of their first `dvc repro` committed, and what ran; side by side to save time."""
    folder = tmp_path_factory.mktemp("end-to-end")
    (folder / "tools").mkdir()
    (folder / "tools/sitecustomize.py").write_text(WATCH)
    clones = [new_clone(folder / name, folder / "tools") for name in ("project", "zweite Übung")]
    with ThreadPoolExecutor() as pool:
        ran = list(pool.map(lambda clone: clone.ran("dvc", "repro"), clones))
    for clone in clones:
        clone.call("git", "add", "-A")
        clone.call("git", "commit", "-qm", "After")
    return dict(zip(("plain", "odd"), zip(clones, ran, strict=True), strict=True))


@pytest.fixture(scope="module")
def later_runs(first_runs: dict[str, tuple[Clone, list[str]]]) -> dict[str, list[str]]:
    """What ran for the experiments `other` and `slow` in the plain clone, and for another split in the odd one."""
    plain, odd = first_runs["plain"][0], first_runs["odd"][0]
    odd.edit({"normalize.seed": 1, "model.kind": "linear"})
    with ThreadPoolExecutor() as pool:
        split = pool.submit(odd.ran, "dvc", "repro")
        ran = {}
        for name, change in (("other", "dataset=tiny2"), ("slow", "train.learning_rate=0.00001")):
            reset(plain)
            ran[name] = plain.ran("dvc", "exp", "run", "-n", name, "-S", change)
        return ran | {"split": split.result()}


def reset(clone: Clone) -> None:
    """Brings files and data back to the last commit."""
    clone.call("git", "reset", "-q", "--hard")
    clone.call("dvc", "checkout", "-q")


@pytest.fixture
def clone(first_runs: dict[str, tuple[Clone, list[str]]]) -> Clone:
    """The plain clone as it was committed."""
    reset(first_runs["plain"][0])
    return first_runs["plain"][0]


@pytest.fixture
def compared(later_runs: dict[str, list[str]], clone: Clone) -> Clone:
    """The same, with the experiments in it."""
    return clone


def test_a_first_run_runs_every_stage_and_only_train_and_predict_import_tensorflow(
    first_runs: dict[str, tuple[Clone, list[str]]],
) -> None:
    assert first_runs["plain"][1] == first_runs["odd"][1] == ALL


def test_a_run_leaves_nothing_for_git_but_the_lock_file_and_reports(clone: Clone) -> None:
    names = clone.call("git", "diff", "--name-only", "HEAD~", "HEAD").splitlines()
    assert {name.split("/")[0] for name in names} == {"dvc.lock", "reports"}
    assert not list(clone.path.glob("*/.partial-*"))


def test_equal_seeds_give_equal_files_also_at_a_path_with_a_space_and_an_umlaut(
    first_runs: dict[str, tuple[Clone, list[str]]],
) -> None:
    plain, odd = (clone.call("git", "ls-tree", "-r", "HEAD") for clone, _ in first_runs.values())
    assert plain == odd


def test_a_second_run_does_nothing(clone: Clone) -> None:
    assert clone.ran("dvc", "repro") == []
    assert clone.json("dvc", "status") == {}
    assert clone.changed() == set()


@pytest.mark.parametrize(
    ("change", "stages"),
    [("other", ALL), ("split", ["normalize", *FROM_TRAIN]), ("slow", FROM_TRAIN)],
    ids=["data set", "split", "learning rate"],
)
def test_a_change_early_in_the_pipeline_runs_all_that_follows(
    later_runs: dict[str, list[str]], change: str, stages: list[str]
) -> None:
    assert later_runs[change] == stages


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("fetch.source", "local", "fetch"),  # the same bytes
        ("plot.samples", 4, "plot"),
        ("extract_errors.examples", 3, "extract_errors"),
    ],
)
def test_a_change_that_nothing_else_depends_on_runs_one_stage(
    clone: Clone, key: str, value: object, stage: str
) -> None:
    clone.edit({key: value})
    assert clone.ran("dvc", "repro") == [stage]
    assert clone.json("dvc", "status") == {}


def test_each_parameter_changes_the_stages_that_read_it(clone: Clone) -> None:
    # What follows from a changed stage, the runs above show; which stages a parameter changes, DVC tells in less time.
    for key, value, stages in (
        ("dataset", "tiny2", {"fetch"}),
        ("normalize.method", "standardize", {"normalize"}),
        ("normalize.validation", 0, {"normalize"}),
        ("model.kind", "linear", {"train", "predict"}),
        ("model.mlp.dropout", 0.5, {"train", "predict"}),
        ("model.linear.l2", 0.5, set()),  # another kind's
        ("train.seed", 1, {"train"}),
        ("train.epochs", 3, {"train"}),
        ("train.batch_size", 5, {"train"}),
        ("plot.seed", 1, {"plot"}),
        ("plot.pairs", 3, {"plot"}),
        ("extract_errors.seed", 1, {"extract_errors"}),
    ):
        clone.call("git", "checkout", "-q", "params.yaml")
        clone.edit({key: value})
        assert set(clone.json("dvc", "status")) == stages, key


def test_going_back_to_an_earlier_data_set_restores_it_without_training(compared: Clone) -> None:
    compared.call("dvc", "exp", "apply", "other")
    assert {"params.yaml", "dvc.lock", "reports/metrics.json"} <= compared.changed()
    compared.call("git", "checkout", "-q", "params.yaml")
    assert compared.ran("dvc", "repro") == REPORTING
    assert compared.changed() == set()


def test_metrics_of_two_data_sets_line_up(compared: Clone) -> None:
    metrics = compared.json("dvc", "metrics", "diff", "HEAD", "other", "--all")["reports/metrics.json"]
    content = json.loads((compared.path / "reports/metrics.json").read_text())
    validation = content.pop("validation")
    assert set(metrics) == {*content, *(f"validation.{name}" for name in validation)}
    assert all({"old", "new"} <= set(values) for values in metrics.values())
    assert metrics["loss"]["old"] != metrics["loss"]["new"]


def test_plots_of_two_data_sets_line_up(compared: Clone) -> None:
    plots = compared.json("dvc", "plots", "diff", "HEAD", "other", "-o", "dvc_plots")
    figures = {path.relative_to(compared.path).as_posix() for path in compared.path.glob("reports/figures/*.png")}
    assert set(plots["data"]) == {"loss", "accuracy", "recall", "precision", "confusion"} | figures
    for name, parts in plots["data"].items():
        assert {revision for part in parts for revision in part["revisions"]} == {"HEAD", "other"}, name
    assert "errors" not in plots
    compared.call("dvc", "plots", "diff", "HEAD", "other", "-o", "dvc_plots")
    html = (compared.path / "dvc_plots/index.html").read_text()
    assert all(f"{title} by" in html for title in ("Loss", "Accuracy", "Recall", "Precision", "Predictions"))
    assert compared.changed() == set()


def test_every_chart_renders_and_names_what_it_compares(compared: Clone) -> None:
    plots = compared.json("dvc", "plots", "diff", "HEAD", "other")["data"]
    charts = {name: parts[0]["content"] for name, parts in plots.items() if parts[0]["type"] == "vega"}
    assert set(charts) == {"loss", "accuracy", "recall", "precision", "confusion"}
    for name, chart in charts.items():
        texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", vl_convert.vegalite_to_svg(chart, vl_version="5.8")))
        assert {"HEAD", "other"} <= texts, name
        if name in ("recall", "precision", "confusion"):
            assert set(CLASSES) <= texts, name


def test_a_learning_rate_in_powers_of_ten_is_a_number_for_every_program(compared: Clone) -> None:
    rows = csv.DictReader(compared.call("dvc", "exp", "show", "--csv").splitlines())
    rates = {row["Experiment"]: row["train.learning_rate"] for row in rows if row["Experiment"]}
    assert rates == {"other": "0.001", "slow": "1e-05"}


def test_the_confusion_plot_has_a_cell_also_for_a_class_that_was_never_predicted(clone: Clone) -> None:
    (plot,) = clone.json("dvc", "plots", "show", "confusion")["data"]["confusion"]
    cells = plot["content"]["data"]["values"]
    assert [(cell["label"], cell["predicted"]) for cell in cells] == [(i, j) for i in CLASSES for j in CLASSES]
    counts = np.array([int(cell["count"]) for cell in cells]).reshape(len(CLASSES), -1)
    assert counts.sum() == COUNTS["test"]
    assert (counts.sum(axis=0) == 0).any(), "after two epochs a class should still be unknown"


def test_the_confusion_plot_writes_counts_in_cells_coloured_by_share_of_the_label(clone: Clone) -> None:
    (plot,) = clone.json("dvc", "plots", "show", "confusion")["data"]["confusion"]
    cells, spec = plot["content"]["data"]["values"], plot["content"]["spec"]
    for label in CLASSES:
        assert sum(float(cell["share"]) for cell in cells if cell["label"] == label) == pytest.approx(1, abs=1e-5)
    assert {spec["encoding"][axis]["sort"] for axis in "xy"} == {None}  # the catalogue's order, not the alphabet's
    colour, number = (layer["encoding"] for layer in spec["layer"])
    assert colour["color"]["field"] == "share of label"
    assert number["text"]["field"] == "images"
    assert {"calculate": "toNumber(datum.share)", "as": "share of label"} in spec["transform"]


def test_an_unknown_kind_of_model_stops_with_one_line_that_names_it(clone: Clone) -> None:
    said = clone.call("dvc", "exp", "run", "-S", "model.kind=cnnn", code=255)
    assert "model.cnnn" in said
    assert "Traceback" not in said
    assert clone.call("python", "-m", "stages.lib.params", code=1) == (
        "params: params.yaml: model.kind: expected 'mlp' or 'linear', found 'cnnn'\n"
    )


def test_dvc_shows_the_graph_the_metrics_and_what_differs(compared: Clone) -> None:
    edges = compared.call("dvc", "dag", "--dot")
    assert '"train" -> "predict"' in edges
    assert "accuracy" in compared.call("dvc", "metrics", "show")
    assert "tiny2" in compared.call("dvc", "exp", "diff", "HEAD", "other")
    compared.edit({"train.epochs": 3})
    assert compared.json("dvc", "params", "diff") == {"params.yaml": {"train.epochs": {"old": 2, "new": 3, "diff": 1}}}


def test_queued_experiments_run_in_the_background_one_after_another(clone: Clone) -> None:
    clone.call("dvc", "exp", "run", "--queue", "-S", "plot.seed=range(1,3)")
    clone.call("dvc", "queue", "start", "--jobs", "1")
    deadline = time.monotonic() + 120
    while "Running" in (status := clone.call("dvc", "queue", "status")) or "Queued" in status:
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    assert status.count("Success") == 2
    clone.call("dvc", "queue", "stop")
    clone.call("dvc", "queue", "remove", "--all")


def test_a_typo_stops_the_first_stage_with_one_line_that_names_the_key(clone: Clone) -> None:
    clone.edit({"normalize.seed": 2})  # a stage that trains nothing is the first to run
    params = clone.path / "params.yaml"
    params.write_text(params.read_text().replace("epochs", "epoch"))
    written = {path: path.stat().st_mtime_ns for path in clone.path.glob("reports/**/*")}
    said = clone.call("dvc", "repro", code=255)
    assert [line for line in said.splitlines() if "epoch" in line] == [
        "normalize: params.yaml: train.epoch: expected one of seed, epochs, batch_size, learning_rate, schedule, "
        "found a key with this name"
    ]
    assert "Traceback" not in said
    assert "Running stage 'train'" not in said
    assert {path: path.stat().st_mtime_ns for path in clone.path.glob("reports/**/*")} == written
    assert clone.changed() == {"params.yaml"}


def test_a_stage_that_fails_after_another_leaves_git_clean_and_loses_nothing(clone: Clone) -> None:
    clone.edit({"fetch.source": "local", "normalize.validation": COUNTS["train"]})
    assert clone.ran("dvc", "repro", code=255)[-1:] == ["normalize"]
    assert clone.changed() == {"dvc.lock", "params.yaml"}  # the lock has what fetch did
    clone.call("git", "checkout", "-q", ".")
    assert clone.ran("dvc", "repro") == []
    assert clone.changed() == set()
