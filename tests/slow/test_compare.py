"""Runs of the tiny dataset under real DVC, compared by the command-line tool."""

import csv
from pathlib import Path

import pytest

from tests.helpers import Clone, new_clone, read_entry, write_entry
from tools.lib.comparison import disagreements
from tools.lib.runs import read_runs

pytestmark = pytest.mark.slow
COMPARE = ["python", "-m", "tools.compare"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Three seeds of linear; nearest neighbors twice on that dataset and once on another."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "tools").mkdir()
    clone = new_clone(folder / "project", folder / "tools")
    clone.call("git", "rm", "-q", "dvc.lock")
    clone.call("git", "commit", "-qm", "Nothing run")
    clone.call("git", "tag", "empty")
    clone.edit({"model.kind": "pca_knn", "model.pca_knn": {"components": 4, "neighbors": 3}})
    clone.call("dvc", "repro")
    clone.call("git", "add", "-A")
    clone.call("git", "commit", "-qm", "Neighbors")
    for seed in range(3):
        values = ["-S", "model.kind=linear", "-S", f"train.seed={seed}"]
        clone.call("dvc", "exp", "run", "--temp", "-n", f"linear-{seed}", *values)
    clone.call("dvc", "exp", "run", "--temp", "-n", "few", "-S", "model.pca_knn.components=1")
    clone.call("dvc", "exp", "run", "--temp", "-n", "other", "-S", "dataset=tiny2")
    return clone


def table(clone: Clone, name: str = "comparison.csv") -> list[dict[str, str]]:
    with (clone.path / "reports" / name).open() as file:
        return [*csv.DictReader(file)]


def restored(clone: Clone) -> set[str]:
    """Delete the tool's files, and return the files that are still modified in Git."""
    for path in clone.path.glob("reports/comparison*"):
        path.unlink()
    return clone.changed()


def test_runs_are_grouped_and_differences_listed(clone: Clone) -> None:
    output = clone.call(*COMPARE, "linear-0", "linear-1", "linear-2", "HEAD", "few")
    rows = table(clone)
    assert sorted((row["configuration"], row["differing"], row["runs"]) for row in rows) == [
        ("HEAD", "components=4", "1"),
        ("few", "components=1", "1"),
        ("linear", "", "3"),
    ]
    (linear,) = (row for row in rows if row["configuration"] == "linear")
    shown = [
        clone.json("dvc", "metrics", "diff", "--all", "HEAD", f"linear-{seed}") for seed in range(3)
    ]
    accuracies = [float(each["reports/metrics.json"]["accuracy"]["new"]) for each in shown]
    assert float(linear["accuracy"]) == pytest.approx(sum(accuracies) / 3, abs=1e-6)
    assert linear["names"] == "linear-0, linear-1, linear-2"
    assert "train.seed 0 to 2; normalize.seed 0" in output
    assert {row["generalizes to"] for row in table(clone, "comparison_pairs.csv")} == {
        "images, runs of linear",
        "images",
    }
    assert (clone.path / "reports/comparison.md").read_text().count("\n| ") == 3 + 2 + 3 + 2
    assert (clone.path / "reports/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert restored(clone) == set()


def test_library_version_is_part_of_the_configuration(clone: Clone) -> None:
    lock = clone.path / "requirements.lock"
    lock.write_text(lock.read_text() + "# other\n")
    clone.call("git", "commit", "-qam", "Other versions")
    try:
        clone.call(*COMPARE, "HEAD", "HEAD~1")
        rows = table(clone)
        assert [row["differing"].partition("=")[0] for row in rows] == ["lock", "lock"]
    finally:
        clone.call("git", "reset", "-q", "--hard", "HEAD~1")
    assert restored(clone) == set()


def test_single_runs_are_compared_image_by_image(clone: Clone) -> None:
    """Images on which they disagree are listed and drawn."""
    output = clone.call(*COMPARE, "linear-0", "few")
    assert "reports/comparison_images.png" in output
    assert (clone.path / "reports/comparison_images.png").read_bytes().startswith(b"\x89PNG")
    listed = table(clone, "comparison_images.csv")
    wrong = {
        name: sum(row[f"predicted by {name}"] != row["label"] for row in listed)
        for name in ("linear-0", "few")
    }
    assert sum(wrong.values()) == len(listed) > 0
    (pair,) = table(clone, "comparison_pairs.csv")
    assert [pair["first"], pair["second"]] == sorted(wrong, key=lambda name: wrong[name])
    assert float(pair["difference"]) == pytest.approx(abs(wrong["few"] - wrong["linear-0"]) / 30)
    output = clone.call(*COMPARE, "HEAD")  # removes the files of an earlier comparison
    assert [*clone.path.glob("reports/comparison_*")] == []
    assert "comparison_images" not in output
    assert restored(clone) == set()


def test_drawn_pair_shares_a_dataset(clone: Clone) -> None:
    """A third run is on another dataset."""
    clone.call(*COMPARE, "linear-0", "few")
    alone = [
        (clone.path / f"reports/comparison_images.{ending}").read_bytes()
        for ending in ("csv", "png")
    ]
    clone.edit({"dataset": "another"})  # which comes before the other two in a table by name
    write_entry(clone.path, "another", read_entry(clone.path, "tiny2"))
    clone.call("git", "add", "datasets")
    clone.call("dvc", "exp", "run", "--temp", "-n", "another")
    clone.call("git", "reset", "-q", "--hard")
    clone.call(*COMPARE, "linear-0", "few", "another")
    assert [row["dataset"] for row in table(clone)] == ["another", "tiny", "tiny"]
    assert [
        (clone.path / f"reports/comparison_images.{ending}").read_bytes()
        for ending in ("csv", "png")
    ] == alone
    clone.call("dvc", "exp", "remove", "another")
    assert restored(clone) == set()


def test_equal_predictions_show_no_difference(clone: Clone) -> None:
    """No images are drawn."""
    clone.call("dvc", "exp", "run", "--temp", "-n", "same", "-S", "model.pca_knn.neighbors=1")
    clone.call(*COMPARE, "HEAD", "same")
    (pair,) = table(clone, "comparison_pairs.csv")
    assert (pair["verdict"], float(pair["p"])) == ("no difference shown", 1)
    assert [*clone.path.glob("reports/comparison_images.*")] == []
    clone.call("dvc", "exp", "remove", "same")
    assert restored(clone) == set()


def test_disagreements_are_errors_of_only_one_run(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure shows the first images of the table."""
    monkeypatch.chdir(clone.path)
    runs = read_runs(["linear-0", "few"])
    mistaken = []
    for each in runs:
        predictions = each.read("data/predictions.npz")
        guesses = predictions["test_probabilities"].argmax(axis=1)
        mistaken.append(
            {i for i, label in enumerate(predictions["test_labels"]) if guesses[i] != label}
        )
    listed, drawn = disagreements(*runs)
    assert {*listed["index"]} == mistaken[0] ^ mistaken[1]
    for row, each, own, other in zip(drawn.subfigs, runs, mistaken, mistaken[::-1], strict=True):
        only = sorted(own - other)
        assert (
            row.get_suptitle()
            == f"misclassified by {each.name} only: first {min(8, len(only))} of {len(only)}"
        )
        shown = [axes.get_title().split("\n") for axes in row.axes if axes.images]
        assert [index for index, _, _ in shown] == [f"no. {i}" for i in only[:8]]
        rows = listed[listed["index"].isin(only)].to_dict("records")
        expected = [
            [
                f"no. {row['index']}",
                f"label {row['label']}",
                f"predicted {row[f'predicted by {each.name}']}",
            ]
            for row in rows[:8]
        ]
        assert shown == expected
    assert mistaken[0] - mistaken[1]


def test_runs_on_different_datasets_are_not_compared(clone: Clone) -> None:
    output = clone.call(*COMPARE, "HEAD", "other")
    assert {row["dataset"] for row in table(clone)} == {"tiny", "tiny2"}
    assert "No dataset has two configurations" in output
    assert not (clone.path / "reports/comparison_pairs.csv").exists()
    assert not (clone.path / "reports/comparison_images.png").exists()
    assert restored(clone) == set()


def test_default_is_the_experiments_on_head(clone: Clone) -> None:
    clone.call(*COMPARE)
    assert sum(int(row["runs"]) for row in table(clone)) == 5
    assert restored(clone) == set()


def test_results_are_written_to_the_given_folder(clone: Clone, tmp_path: Path) -> None:
    clone.call(*COMPARE, "HEAD", "--out", str(tmp_path / "new"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "comparison.csv",
        "comparison.md",
        "comparison.png",
    ]
    assert restored(clone) == set()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["HEAD", "missing"],
            "missing: not an experiment, branch, tag or commit (",
        ),
        (["HEAD", ""], ": not an experiment, branch, tag or commit ("),
        (["empty"], "empty: not a finished run (dvc.lock, reports): "),
    ],
)
def test_name_without_results_is_rejected_in_one_line(
    clone: Clone, names: list[str], reason: str
) -> None:
    output = clone.call(*COMPARE, *names, code=1)
    assert output.startswith(f"compare: {reason}")
    assert output.count("\n") == 1
    assert restored(clone) == set()


def test_missing_predictions_are_reported(clone: Clone) -> None:
    cache = clone.path / ".dvc/cache"
    cache.rename(clone.path / ".dvc/away")
    try:
        output = clone.call(*COMPARE, "HEAD", "few", code=1)
        assert "HEAD: cannot read data/predictions.npz" in output
        assert "if the results differ on this CPU, commit them and use that commit" in output
    finally:
        (clone.path / ".dvc/away").rename(cache)
    assert restored(clone) == set()


def test_reports_of_other_predictions_are_rejected(clone: Clone) -> None:
    report = clone.path / "reports/metrics.json"
    report.write_text(report.read_text().replace('"errors": ', '"errors": 1'))
    clone.call("git", "commit", "-qam", "By hand")
    try:
        output = clone.call(*COMPARE, "HEAD", code=1)
        assert (
            "HEAD: not a finished run (dvc.lock, reports): "
            "reports that do not match the predictions; run dvc repro" in output
        )
    finally:
        clone.call("git", "reset", "-q", "--hard", "HEAD~1")
    restored(clone)


def test_no_experiments_are_reported_with_advice(clone: Clone) -> None:
    clone.call("git", "commit", "-q", "--allow-empty", "-m", "Later")
    try:
        output = clone.call(*COMPARE, code=1)
        assert output.startswith(
            "compare: no experiments on this commit (COMPARE=--all includes other commits); run"
        )
        clone.call(*COMPARE, "--all")
        assert sum(int(row["runs"]) for row in table(clone)) == 5
        clone.call("dvc", "exp", "run", "--temp", "-n", "few", "-S", "model.pca_knn.components=2")
        clone.call(*COMPARE, "--all")
        runs = ", ".join(row["names"] for row in table(clone)).split(", ")
        bases = [clone.call("git", "rev-parse", rev)[:7] for rev in ("HEAD", "HEAD~1")]
        assert {name for name in runs if name.startswith("few")} == {
            f"few ({base})" for base in bases
        }
    finally:
        clone.call("git", "reset", "-q", "--hard", "HEAD~1")
    restored(clone)
