"""The whole pipeline under real DVC, in Git clones with the tiny dataset."""

import csv
import json
import platform
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import vl_convert
from dvc.repo import Repo

from tests.helpers import CLASSES, CLOCK, COUNTS, ODD, WATCH, Clone, new_clone
from tools.about import about

REPORTING = ["evaluate", "plot", "extract_errors"]
FROM_TRAIN = ["train", "tensorflow", "predict", *REPORTING]
ALL = ["fetch", "normalize", *FROM_TRAIN]
SPLIT: dict[str, object] = {
    "normalize.seed": 1,
    "model.kind": "pca_knn",
    "model.pca_knn.components": 4,
}


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Clone, list[str]]]:
    """Two clones with the committed results of a first `dvc repro`, and the stages that ran."""
    folder = tmp_path_factory.mktemp("end-to-end")
    (folder / "tools").mkdir()
    (folder / "tools/sitecustomize.py").write_text(WATCH)
    clones = [new_clone(folder / name, folder / "tools") for name in ("project", "zweite Übung")]
    with ThreadPoolExecutor() as pool:
        ran = list(
            pool.map(lambda clone, start: clone.ran(*start, "dvc", "repro"), clones, ([], ODD))
        )
    for clone in clones:
        clone.call("git", "add", "-A")
        clone.call("git", "commit", "-qm", "After")
    return dict(zip(("plain", "odd"), zip(clones, ran, strict=True), strict=True))


@pytest.fixture(scope="module")
def later_runs(first_runs: dict[str, tuple[Clone, list[str]]]) -> dict[str, list[str]]:
    """Stages that ran for experiments in the plain clone and for another split in the odd one."""
    plain, odd = first_runs["plain"][0], first_runs["odd"][0]
    odd.edit(SPLIT)
    with ThreadPoolExecutor() as pool:
        split = pool.submit(odd.ran, "dvc", "repro")
        ran = {}
        changes = {"other": "dataset=tiny2", "slow": "train.learning_rate=0.00001"}
        for name, change in changes.items():
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
    """The plain clone as it was committed, with the experiments in it."""
    return clone


@pytest.fixture(scope="module")
def plots(
    later_runs: dict[str, list[str]], first_runs: dict[str, tuple[Clone, list[str]]]
) -> dict[str, Any]:
    """The data of `dvc plots diff` between both datasets; it also writes dvc_plots/index.html."""
    plain = first_runs["plain"][0]
    reset(plain)
    data: dict[str, Any] = plain.json("dvc", "plots", "diff", "HEAD", "other")["data"]
    plain.call("dvc", "plots", "diff", "HEAD", "other", "-o", "dvc_plots")
    assert plain.changed() == set()
    return data


def test_first_run_executes_all_stages(
    first_runs: dict[str, tuple[Clone, list[str]]],
) -> None:
    """Only train imports TensorFlow."""
    assert first_runs["plain"][1] == first_runs["odd"][1] == ALL


def outs(clone: Clone) -> dict[str, bytes]:
    """Return the contents of all outputs of stages by name."""
    written = [
        path
        for folder in ("data", "reports")
        for path in (clone.path / folder).rglob("*")
        if path.is_file()
    ]
    return {path.relative_to(clone.path).as_posix(): path.read_bytes() for path in written}


def test_run_changes_only_lock_file_and_reports(clone: Clone) -> None:
    names = clone.call("git", "diff", "--name-only", "HEAD~", "HEAD").splitlines()
    assert {name.split("/")[0] for name in names} == {"dvc.lock", "reports"}
    assert not list(clone.path.glob("*/.partial-*"))


def test_results_are_independent_of_the_environment(
    first_runs: dict[str, tuple[Clone, list[str]]],
) -> None:
    """The clones differ in path, umask, locale, time zone and hash seed."""
    plain, odd = (clone.call("git", "ls-tree", "-r", "HEAD") for clone, _ in first_runs.values())
    assert "dvc.lock" in plain
    assert plain == odd
    plain_outs, odd_outs = (outs(clone) for clone, _ in first_runs.values())
    assert len(plain_outs) > 25
    assert plain_outs == odd_outs


def test_results_are_independent_of_the_clock(
    first_runs: dict[str, tuple[Clone, list[str]]],
) -> None:
    """The odd clone runs with its clock set to 1999."""
    if not CLOCK:
        pytest.skip("libfaketime is not on this machine: the clock could not be set to 1999")
    assert (
        first_runs["odd"][0].call(*ODD, "python", "-c", "import time; print(time.gmtime().tm_year)")
        == "1999\n"
    )
    plain, odd = (outs(clone) for clone, _ in first_runs.values())
    assert plain == odd


def test_outputs_contain_no_machine_name_or_path(
    first_runs: dict[str, tuple[Clone, list[str]]],
) -> None:
    for clone, _ in first_runs.values():
        words = [str(clone.path), platform.node(), platform.release(), about()["CPU"]]
        words = [
            word for word in words if len(word) > 5
        ]  # shorter ones occur in image files by chance
        found = [
            (name, word)
            for name, content in outs(clone).items()
            for word in words
            if word.encode() in content
        ]
        assert found == []


def test_second_run_does_nothing(clone: Clone) -> None:
    assert clone.ran("dvc", "repro") == []
    assert clone.json("dvc", "status") == {}
    assert clone.changed() == set()


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("other", ALL),
        ("split", ["normalize", "train", "predict", *REPORTING]),  # without TensorFlow
        ("slow", FROM_TRAIN),
    ],
    ids=["dataset", "split and nearest neighbors", "learning rate"],
)
def test_early_change_reruns_all_later_stages(
    later_runs: dict[str, list[str]], change: str, stages: list[str]
) -> None:
    assert later_runs[change] == stages


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("fetch.source", "local", "fetch"),  # the same bytes
        ("evaluate.temperature", True, "evaluate"),
        ("plot.samples", 4, "plot"),
        ("extract_errors.examples", 3, "extract_errors"),
    ],
)
def test_change_without_dependents_reruns_one_stage(
    clone: Clone, key: str, value: object, stage: str
) -> None:
    clone.edit({key: value})
    assert clone.ran("dvc", "repro") == [stage]
    assert clone.json("dvc", "status") == {}


def test_parameters_change_the_stages_that_read_them(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.path)
    # The runs above cover later stages; DVC's status lists the changed ones faster than a run.
    for key, value, stages in (
        ("dataset", "tiny2", {"fetch"}),
        ("normalize.method", "standardize", {"normalize"}),
        ("normalize.validation", 0, {"normalize"}),
        ("model.kind", "linear", {"train"}),
        ("model.mlp.dropout", 0.5, {"train"}),
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
        with Repo() as repo:
            assert set(repo.status()) == stages, key


def test_previous_dataset_is_restored_without_training(compared: Clone) -> None:
    compared.call("dvc", "exp", "apply", "other")
    assert {"params.yaml", "dvc.lock", "reports/metrics.json"} <= compared.changed()
    compared.call("git", "checkout", "-q", "params.yaml")
    assert compared.ran("dvc", "repro") == REPORTING
    assert compared.changed() == set()


def test_metrics_of_two_datasets_are_comparable(compared: Clone) -> None:
    metrics = compared.json("dvc", "metrics", "diff", "HEAD", "other", "--all")[
        "reports/metrics.json"
    ]
    content = json.loads((compared.path / "reports/metrics.json").read_text())
    validation = content.pop("validation")
    assert set(metrics) == {*content, *(f"validation.{name}" for name in validation)}
    assert len(metrics) <= 10
    assert all({"old", "new"} <= set(values) for values in metrics.values())
    assert metrics["loss"]["old"] != metrics["loss"]["new"]


def test_plots_of_two_datasets_are_comparable(compared: Clone, plots: dict[str, Any]) -> None:
    figures = {
        path.relative_to(compared.path).as_posix()
        for path in compared.path.glob("reports/figures/*.png")
    }
    assert (
        set(plots)
        == {"loss", "accuracy", "recall", "precision", "calibration", "confusion"} | figures
    )
    for name, parts in plots.items():
        assert {revision for part in parts for revision in part["revisions"]} == {
            "HEAD",
            "other",
        }, name
    assert "errors" not in plots
    html = (compared.path / "dvc_plots/index.html").read_text()
    titles = ("Loss by epoch", "Recall by class", "Reliability diagram", "Confusion matrix")
    assert all(title in html for title in titles)


def test_charts_render_with_revisions_and_classes(plots: dict[str, Any]) -> None:
    charts = {
        name: parts[0]["content"] for name, parts in plots.items() if parts[0]["type"] == "vega"
    }
    assert set(charts) == {"loss", "accuracy", "recall", "precision", "calibration", "confusion"}
    for name, chart in charts.items():
        texts = set(
            re.findall(
                r"<text[^>]*>([^<]*)</text>", vl_convert.vegalite_to_svg(chart, vl_version="5.8")
            )
        )
        assert {"HEAD", "other"} <= texts, name
        if name in ("recall", "precision", "confusion"):
            assert set(CLASSES) <= texts, name


def test_scientific_notation_is_read_as_a_number(compared: Clone) -> None:
    rows = csv.DictReader(compared.call("dvc", "exp", "show", "--csv").splitlines())
    rates = {row["Experiment"]: row["train.learning_rate"] for row in rows if row["Experiment"]}
    assert rates == {"other": "0.001", "slow": "1e-05"}


def test_confusion_plot_includes_unpredicted_classes(
    clone: Clone,
) -> None:
    (plot,) = clone.json("dvc", "plots", "show", "confusion")["data"]["confusion"]
    cells = plot["content"]["data"]["values"]
    assert [(cell["label"], cell["predicted"]) for cell in cells] == [
        (i, j) for i in CLASSES for j in CLASSES
    ]
    counts = np.array([int(cell["count"]) for cell in cells]).reshape(len(CLASSES), -1)
    assert counts.sum() == COUNTS["test"]
    assert (counts.sum(axis=0) == 0).any(), "after two epochs a class should still be unknown"


def test_confusion_plot_shows_counts_and_shares(
    clone: Clone,
) -> None:
    """Cells show counts and are colored by the share of the label."""
    (plot,) = clone.json("dvc", "plots", "show", "confusion")["data"]["confusion"]
    cells, spec = plot["content"]["data"]["values"], plot["content"]["spec"]
    for label in CLASSES:
        assert sum(
            float(cell["share"]) for cell in cells if cell["label"] == label
        ) == pytest.approx(1, abs=1e-5)
    assert {spec["encoding"][axis]["sort"] for axis in "xy"} == {
        None
    }  # the catalog's order, not the alphabet's
    color, number = (layer["encoding"] for layer in spec["layer"])
    assert color["color"]["field"] == "fraction"
    assert number["text"]["field"] == "images"
    assert {"calculate": "toNumber(datum.share)", "as": "fraction"} in spec["transform"]


def test_unknown_model_kind_is_rejected_in_one_line(clone: Clone) -> None:
    printed = clone.call("dvc", "exp", "run", "-S", "model.kind=cnnn", code=255)
    assert "model.cnnn" in printed
    assert "Traceback" not in printed
    printed = clone.call("python", "-m", "stages.lib.params", code=1)
    expected = "params: params.yaml: model.kind: expected 'mlp', .*, found 'cnnn'\n"
    assert re.fullmatch(expected, printed)


def test_unknown_dataset_is_rejected_in_one_line(clone: Clone) -> None:
    printed = clone.call("dvc", "exp", "run", "-S", "dataset=tinny", code=255)
    assert re.search(r"ERROR: .*No such file or directory: '.*/datasets/tinny\.yaml'", printed)
    assert "Traceback" not in printed


def test_new_dataset_changes_no_stage(clone: Clone) -> None:
    entry = clone.path / "datasets/tiny.yaml"
    shutil.copy(entry, clone.path / "datasets/third.yaml")
    assert clone.json("dvc", "status") == {}
    entry.write_text(entry.read_text() + "flip: true\n")
    assert set(clone.json("dvc", "status")) == {"fetch"}
    (clone.path / "datasets/third.yaml").unlink()


def test_dvc_shows_graph_metrics_and_differences(compared: Clone) -> None:
    edges = compared.call("dvc", "dag", "--dot")
    assert '"train" -> "predict"' in edges
    assert "accuracy" in compared.call("dvc", "metrics", "show")
    assert "tiny2" in compared.call("dvc", "exp", "diff", "HEAD", "other")
    compared.edit({"train.epochs": 3})
    assert compared.json("dvc", "params", "diff") == {
        "params.yaml": {"train.epochs": {"old": 2, "new": 3, "diff": 1}}
    }


@pytest.mark.slow
def test_queued_experiments_run_in_sequence(clone: Clone) -> None:
    clone.call("dvc", "exp", "run", "--queue", "-S", "plot.seed=range(1,3)")
    clone.call("dvc", "queue", "start", "--jobs", "1")
    deadline = time.monotonic() + 120
    while "Running" in (status := clone.call("dvc", "queue", "status")) or "Queued" in status:
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    assert status.count("Success") == 2
    clone.call("dvc", "queue", "stop")
    clone.call("dvc", "queue", "remove", "--all")


def test_concurrent_runs_give_the_result_of_one(
    compared: Clone, first_runs: dict[str, tuple[Clone, list[str]]]
) -> None:
    """One of them waits, or fails because DVC is locked."""
    compared.edit(SPLIT)  # as the odd clone ran alone
    command = ["dvc", "repro"]
    runs = []
    for _ in range(2):
        runs.append(
            subprocess.Popen(
                command, cwd=compared.path, env=compared.env, stdout=-1, stderr=-2, text=True
            )
        )
        time.sleep(1)
    outputs = [run.communicate()[0] for run in runs]
    assert 0 in [run.returncode for run in runs], outputs
    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0 or re.search(
            "Unable to acquire lock|is busy, it is being blocked by", output
        ), output
        assert "Traceback" not in output
    assert compared.ran("dvc", "repro") == []
    assert compared.call("python", "-m", "tools.verify").startswith("verify: ")
    assert outs(compared) == outs(first_runs["odd"][0])


def test_misspelled_key_stops_the_first_stage(clone: Clone) -> None:
    """The error is one line with the key, and no report changes."""
    clone.edit({"normalize.seed": 2})  # a stage that trains nothing is the first to run
    params = clone.path / "params.yaml"
    params.write_text(params.read_text().replace("epochs", "epoch"))
    written = {path: path.stat().st_mtime_ns for path in clone.path.glob("reports/**/*")}
    printed = clone.call("dvc", "repro", code=255)
    assert [line for line in printed.splitlines() if "epoch" in line] == [
        "normalize: params.yaml: train.epoch: unknown key; expected one of seed, epochs, "
        "batch_size, learning_rate, schedule, label_smoothing"
    ]
    assert "Traceback" not in printed
    assert "Running stage 'train'" not in printed
    assert {path: path.stat().st_mtime_ns for path in clone.path.glob("reports/**/*")} == written
    assert clone.changed() == {"params.yaml"}


def test_failed_stage_keeps_earlier_results(clone: Clone) -> None:
    """After `git checkout`, nothing runs again and the working tree is clean."""
    clone.edit({"fetch.source": "local", "normalize.validation": COUNTS["train"]})
    assert clone.ran("dvc", "repro", code=255)[-1:] == ["normalize"]
    assert clone.changed() == {"dvc.lock", "params.yaml"}  # the lock has what fetch did
    clone.call("git", "checkout", "-q", ".")
    assert clone.ran("dvc", "repro") == []
    assert clone.changed() == set()
