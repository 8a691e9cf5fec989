"""The search: spaces, invalid input and continuation; with DVC: slow/test_search.py."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy import stats

from stages.lib.results import metrics
from stages.lib.stage import StageError
from tests.helpers import ROOT, clone_env, make_tiny, read_yaml, write_yaml
from tools import search as tool
from tools.lib import execution
from tools.lib.execution import Outcome, finished
from tools.lib.experiment import head
from tools.lib.search import (
    Search,
    check_score,
    interval,
    read_trial,
    removal,
    scores_per_image,
)
from tools.lib.significance import accuracy_interval
from tools.lib.space import Space, read_space

SPACE: dict[str, Any] = {
    "set": {"model.kind": "mlp"},
    "vary": {
        "model.mlp.dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "model.mlp.hidden": [[8], [4, 4]],
        "train.epochs": {"low": 1, "high": 9},
        "train.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    },
}
TEST_SCORE = 0.1234
Main = Callable[..., list[str]]


def vary(**ranges: object) -> dict[str, object]:
    """A space that varies keys, whose dots are written as two underscores."""
    return {"vary": {key.replace("__", "."): value for key, value in ranges.items()}}


def space(content: object = SPACE) -> Space:
    write_yaml(Path("space.yaml"), content)
    return read_space(Path("space.yaml"))


def loss(params: dict[str, Any]) -> float:
    """A stand-in for training, without ties."""
    rate, dropout = params["train"]["learning_rate"], params["model"]["mlp"]["dropout"]
    width = len(params["model"]["mlp"]["hidden"])
    return float(abs(np.log10(rate) + 2) + dropout + width / 10 + 1 / params["train"]["epochs"])


def commit_experiment(name: str, changes: Sequence[str], metrics: str = "") -> None:
    """Imitate `dvc exp run`: refer to a new commit with the parameters and the reports."""
    params = read_yaml(Path("params.yaml"))
    for change in changes:
        key, _, value = change.partition("=")
        *parents, last = key.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[last] = json.loads(value) if value[0] in "[0123456789" else value
    files = Path("../experiment")
    (files / "reports").mkdir(parents=True, exist_ok=True)
    write_yaml(files / "params.yaml", params)
    scores = {"loss": loss(params), "accuracy": 1 - loss(params) / 10}
    report = {"accuracy": TEST_SCORE, "loss": TEST_SCORE, "validation": scores}
    (files / "reports/metrics.json").write_text(metrics or json.dumps(report))
    (files / "reports/scores.json").write_text(json.dumps({"validation": {"brier": 0.5}}))
    env = os.environ | {
        "GIT_DIR": str(Path(".git").resolve()),
        "GIT_WORK_TREE": str(files.resolve()),
        "GIT_INDEX_FILE": str((files.parent / "index").resolve()),
    }

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], env=env, text=True, cwd=files).strip()

    git("add", "--all")
    commit = git("commit-tree", git("write-tree"), "-p", "HEAD", "-m", name)
    base = git("rev-parse", "HEAD")
    git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", commit)


def fake_run(seed: int = 0, validation: object = 18) -> Any:  # noqa: ANN401  # like a Run
    """A run with random predictions of 50 validation images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 50)
    probabilities = rng.dirichlet([1, 1, 1], 50)
    probabilities[range(50), labels] += 0.4
    predictions = {
        "validation_labels": labels,
        "validation_probabilities": (probabilities / 1.4).astype(np.float32),
    }
    params = {"normalize.validation": validation}
    return SimpleNamespace(read=lambda _: predictions, params=params)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with params.yaml of the tiny dataset and a search space."""
    folder = tmp_path / "project"
    folder.mkdir()
    make_tiny(folder)
    write_yaml(folder / "space.yaml", SPACE)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def main(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Main:
    """Runs the tool with options in a repository, and returns the lines that it prints."""
    for name, value in clone_env(project.parent, "search").items():
        monkeypatch.setenv(name, value)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Before"]):
        subprocess.run(["git", *words], check=True)
    monkeypatch.setattr(execution, "run_experiment", commit_experiment)
    monkeypatch.setattr(tool, "read_run", lambda *_: fake_run())

    def call(*options: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["search", "--space", "space.yaml", *options])
        try:
            tool.main()
        finally:
            call.output = capsys.readouterr().out.splitlines()  # type: ignore[attr-defined]
        return call.output  # type: ignore[attr-defined,no-any-return]

    return call


def trials() -> dict[str, dict[str, object]]:
    """The parameters of the experiments on HEAD, by name."""
    return {
        name: read_trial(name, commit, "validation.loss")[0]
        for name, commit in finished(head()).items()
    }


@pytest.mark.parametrize(("name", "kind"), [("mlp", "mlp"), ("fast", "mlp"), ("cnn", "cnn")])
def test_shipped_spaces_are_valid(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_space(Path(f"searches/{name}.yaml")).fixed["model.kind"] == kind


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "vary: missing"),
        ({"vary": {}}, "vary: expected at least 1 item"),
        ({**SPACE, "fixed": {}}, "fixed: unknown key; expected one of set, vary"),
        (
            vary(train__rate=[1, 2]),
            "vary: expected keys of params.yaml such as train.learning_rate",
        ),
        (vary(train=[1, 2]), "vary: expected keys of params.yaml"),
        ({**SPACE, "set": {"model.kin": "mlp"}}, "set: expected keys of params.yaml such as"),
        (
            {**SPACE, "set": {"dataset": "tiny"}},
            "set: dataset is not allowed; use --dataset",
        ),
        ({**SPACE, "set": {"train.epochs": 2}}, "train.epochs: expected in set or in vary"),
        ({**SPACE, "set": {"train.epochs": 0}}, "train.epochs: expected in set or in vary"),
        ({**SPACE, "set": {"train.batch_size": 0}}, "train.batch_size: expected greater than or"),
        ({**SPACE, "set": {"normalize.validation": 0}}, "a search needs validation images"),
        (vary(train__seed=[1, 2]), "vary: expected other keys than dataset, normalize.seed, "),
        (vary(normalize__validation=[1, 2]), "vary: expected other keys than dataset"),
        (
            vary(model__cnn__dropout=[0.1, 0.2]),
            "vary: expected keys of model.mlp, found 'model.cnn.",
        ),
        (vary(train__epochs=5), "vary.train.epochs: expected low and high, or a list of different"),
        (
            vary(train__epochs=[5]),
            "vary.train.epochs: expected low and high, or a list of different",
        ),
        (
            vary(train__epochs=[5, 5]),
            "vary.train.epochs: expected low and high, or a list of differ",
        ),
        (vary(train__epochs={"low": 1}), "vary.train.epochs.high: missing"),
        (
            vary(train__epochs={"low": 1, "high": 2, "lag": True}),
            "vary.train.epochs.lag: unknown key; expected one",
        ),
        (vary(train__epochs={"low": 2, "high": 2}), "vary.train.epochs: expected low below high"),
        (
            vary(train__epochs={"low": 0, "high": 2}),
            "space.yaml: train.epochs: expected greater than",
        ),
        (vary(train__epochs={"low": 1, "high": 2.5}), "train.epochs: expected a valid integer"),
        (
            vary(train__epochs={"low": 1, "high": 99_999}),
            "train.epochs: expected less than or equal",
        ),
        (
            vary(train__epochs={"low": 4, "high": 10, "step": 2.0}),
            "space.yaml: train.epochs: expected a valid integer, found 4.0",
        ),
        (
            vary(plot__samples=[4, 9]),
            "vary: expected keys of normalize, model or train, found 'plot.samples'",
        ),
        (
            vary(evaluate__temperature=[True, False]),
            "vary: expected keys of normalize, model or train, found 'evaluate.temperature'",
        ),
        (
            {**SPACE, "set": {"extract_errors.examples": 4}},
            "set: expected keys of normalize, model or train, found 'extract_errors.examples'",
        ),
        (
            {**SPACE, "set": {"fetch.source": "kaggle"}},
            "set: expected keys of normalize, model or train, found 'fetch.source'",
        ),
        (
            vary(train__learning_rate={"low": 0.1, "high": 2**53}),
            "vary.train.learning_rate.high: expected less than",
        ),
        (vary(normalize__method=["min_max", "none"]), "normalize.method: expected 'min_max' or"),
        (
            vary(model__mlp__dropout={"low": 0.0, "high": 0.5, "log": True}),
            "vary.model.mlp.dropout: expected low above 0 and no step, because of log",
        ),
        (
            vary(train__learning_rate={"low": 0.1, "high": 0.2, "log": True, "step": 0.1}),
            "vary.train.learning_rate: expected low above 0 and no step, because of log",
        ),
        (
            vary(model__mlp__dropout={"low": 0.0, "high": 0.5, "step": 0.2}),
            "vary.model.mlp.dropout: expected a step that divides high - low",
        ),
        (
            vary(model__mlp__dropout={"low": 0.0, "high": 0.5, "step": -0.1}),
            "vary.model.mlp.dropout: expected a step that divides high - low",
        ),
    ],
    ids=str,
)
def test_invalid_space_is_rejected(project: Path, content: object, reason: str) -> None:
    with pytest.raises(StageError) as refusal:
        space(content)
    assert reason in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        vary(train__epochs={"low": 1, "high": 2}),
        vary(train__learning_rate={"low": 0.1, "high": 1}),  # a float, since one limit is
        vary(model__mlp__dropout={"low": 0.0, "high": 0.3, "step": 0.1}),
        vary(model__mlp__dropout={"low": 0, "high": 0.5, "step": 0.25}),
        vary(train__batch_size={"low": 10, "high": 100, "step": 30}),
        vary(train__batch_size={"low": 10, "high": 100, "log": True}),
        vary(model__kind=["mlp", "cnn"], model__cnn__flip=[True, False]),
        {"set": {"model.kind": "cnn"}, **vary(model__cnn__depth=[1, 2])},
    ],
    ids=str,
)
def test_valid_space_is_accepted_and_sampled(project: Path, content: object) -> None:
    search = Search("tiny", space(content), "validation.loss")
    for number in range(5):
        values = search.ask(number)
        assert search.values(number) == values  # also after a round trip through params.yaml
        search.trials[number].state = TrialState.RUNNING


def test_values_are_readable_and_in_range(project: Path) -> None:
    search = Search("tiny", space(), "validation.loss")
    for number in range(30):
        values = search.ask(number)
        rate, dropout = values["train.learning_rate"], values["model.mlp.dropout"]
        assert isinstance(rate, float)
        assert 0.001 <= rate <= 0.1
        assert len(f"{rate:g}".strip("0.")) <= 3
        assert dropout in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
        assert values["train.epochs"] in range(1, 10)
        assert values["model.mlp.hidden"] in ([8], [4, 4])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("train.epochs", value) for value in (0, 10, 2.5, True, None, "many", [2])),
        *(("model.mlp.dropout", value) for value in (0.15, 0.6, float("nan"), "0.1")),
        *(("train.learning_rate", value) for value in (0.0001, 0.2)),
        ("model.mlp.hidden", [8, 8]),
    ],
)
def test_value_outside_the_space_has_no_encoding(project: Path, key: str, value: object) -> None:
    search = Search("tiny", space(), "validation.loss")
    inside = search.ask(0)
    search.space.encode(inside)
    with pytest.raises(ValueError, match=f"^{key}: expected a value in the search space, found "):
        search.space.encode({**inside, key: value})
    del inside[key]
    with pytest.raises(ValueError, match=f"^{key}: missing$"):
        search.space.encode(inside)


def test_rounding_does_not_leave_the_range(project: Path) -> None:
    narrow = space(vary(train__learning_rate={"low": 0.12346, "high": 0.12349}))
    assert narrow.decode({"train.learning_rate": 0.123465}) == {"train.learning_rate": 0.12346}
    assert narrow.decode({"train.learning_rate": 0.12348}) == {"train.learning_rate": 0.12346}


def test_name_depends_on_space_but_not_on_layout(project: Path) -> None:
    first = Search("tiny", space(), "validation.loss").name(7)
    backwards = {**SPACE, "vary": dict(reversed(SPACE["vary"].items()))}
    Path("space.yaml").write_text(f"# again\n{json.dumps(backwards)}")
    other = Search("tiny", read_space(Path("space.yaml")), "validation.loss")
    assert other.name(7) == first == f"tiny-search-{other.space.digest}-7"
    assert other.number(first) == 7
    assert other.ask(0) == Search("tiny", space(), "validation.loss").ask(0)
    assert other.number(f"{first}-seed3") == -1
    wider = {**SPACE["vary"], "train.epochs": {"low": 1, "high": 10}}
    assert Search("tiny", space({**SPACE, "vary": wider}), "validation.loss").number(first) == -1


def test_continued_search_equals_uninterrupted_search(main: Main) -> None:
    """The trials go beyond the ten random ones that Optuna starts with."""
    lines = main("--trials", "14")
    assert lines[0] == "0 of 14 trials are finished, 14 to run"
    whole = trials()
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "Next"], check=True)
    main("--trials", "5")
    assert main("--trials", "12")[0] == "5 of 12 trials are finished, 7 to run"
    lines = main("--trials", "14")
    assert lines[0] == "12 of 14 trials are finished, 2 to run"
    assert lines[1].startswith("13/14  tiny-search-")
    assert trials() == whole
    assert len({json.dumps(params) for params in whole.values()}) == 14
    assert main("--trials", "14")[0] == "14 of 14 trials are finished, 0 to run"


def test_search_reports_validation_scores_only(main: Main) -> None:
    lines = main("--trials", "8")
    assert [line.split()[2] for line in lines[1:9]] == 8 * ["validation.loss"]
    scores = {line.split()[1]: float(line.split()[3]) for line in lines[1:9]}
    best = min(scores, key=lambda name: scores[name])
    assert best != min(scores)  # the first trial
    assert lines[9] == f"8 trials finished; the best is {best}:"
    values = trials()[best]
    assert lines[10:14] == [f"    {key}: {values[key]}" for key in SPACE["vary"]]
    assert "95% confidence interval" in lines[14]
    assert f"to apply it: dvc exp apply {best}" in lines
    assert str(TEST_SCORE) not in "".join(lines)


def test_accuracy_is_maximized(main: Main) -> None:
    lines = main("--trials", "4", "--on", "validation.accuracy")
    scores = {line.split()[1]: float(line.split()[3]) for line in lines[1:5]}
    assert lines[5].endswith(f" {max(scores, key=lambda name: scores[name])}:")
    assert main("--trials", "4", "--on", "validation.brier")[0].startswith(
        "4 of 4 trials are finished"
    )


def test_failed_trials_are_reported_and_rerun(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, changes: Sequence[str]) -> None:
        if name.endswith(("-1", "-3")):
            raise StageError("train failed")
        commit_experiment(name, changes)

    monkeypatch.setattr(execution, "run_experiment", fail)
    with pytest.raises(
        StageError, match=r"2 experiments failed: tiny-search-.*-1, tiny-search-.*-3"
    ):
        main("--trials", "5")
    lines = main.output  # type: ignore[attr-defined]
    assert [" failed: train failed" in line for line in lines[1:6]] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert lines[6].startswith("3 trials finished; the best is ")
    monkeypatch.setattr(execution, "run_experiment", commit_experiment)
    lines = main("--trials", "5")
    assert lines[0] == "3 of 5 trials are finished, 2 to run"
    assert [line.split("  ")[1][-2:] for line in lines[1:3]] == ["-1", "-3"]


def test_no_best_trial_if_all_trials_failed(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StageError("train failed")

    monkeypatch.setattr(execution, "run_experiment", fail)
    with pytest.raises(StageError, match="2 experiments failed"):
        main("--trials", "2")
    assert len(main.output) == 3  # type: ignore[attr-defined]


def test_best_trial_is_confirmed_with_new_seeds(main: Main) -> None:
    main("--trials", "3")
    lines = main("--trials", "3", "--confirm", "2")
    best = lines[1].removesuffix(":").split()[-1]
    names = [f"{best}-seed1", f"{best}-seed2"]
    assert [line.split("  ")[1] for line in lines if "-seed" in line] == names
    assert lines[-1].startswith("2 new seeds: validation.loss ")
    assert lines[-1].endswith(", for new seeds and images")
    found = trials()
    for seed, name in enumerate(names, 1):
        assert found[name] == {**found[best], "train.seed": seed, "normalize.seed": seed}
    lines = main("--trials", "3", "--confirm", "3")
    assert (
        lines[0] == "3 of 3 trials are finished, 0 to run"
    )  # runs with other seeds are not trials
    assert [line.split("  ")[1] for line in lines if "1/1  " in line] == [f"{best}-seed3"]


def test_experiment_outside_the_space_is_rejected(main: Main) -> None:
    name = Search("tiny", space(), "validation.loss").name(0)
    for change in (
        "train.epochs=10",
        "model.mlp.hidden=[5]",
        "model.mlp.dropout=0.25",
    ):
        commit_experiment(name, [change])

        with pytest.raises(StageError) as refusal:
            main("--trials", "2")

        key = change.split("=")[0]
        assert str(refusal.value).startswith(f"{name}: {key}: expected a value in the search space")
        assert str(refusal.value).endswith(f"; {removal(name)}")
    commit_experiment(name, ["train.epochs=9", "train.learning_rate=0.05"])
    assert main("--trials", "2")[0] == "1 of 2 trials are finished, 1 to run"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"validation": {}}, "found none"),
        ({"loss": 0.1}, "found none"),
        ({"validation": None}, "found none"),
        ({"validation": {"loss": None}}, "found None"),
        ({"validation": {"loss": [0.1]}}, "found [0.1]"),
        ({"validation": {"loss": float("nan")}}, "found nan"),
    ],
    ids=str,
)
def test_experiment_without_a_score_is_rejected(main: Main, metrics: object, reason: str) -> None:
    search = Search("tiny", space(), "validation.loss")
    name = search.name(0)
    commit_experiment(name, [], json.dumps(metrics))

    with pytest.raises(StageError) as refusal:
        search.add(name, finished(head())[name])

    expected = "expected a number as validation.loss in its reports"
    assert str(refusal.value) == f"{name}: {expected}, {reason}; {removal(name)}"
    assert search.trials == {}


@pytest.mark.parametrize("name", ["loss", "accuracy", "test.loss", "errors"])
def test_test_scores_are_rejected(name: str) -> None:
    with pytest.raises(
        StageError, match=f"found '{name}'; test scores must not be used for tuning"
    ):
        check_score(name)


def test_score_without_an_interval_is_rejected() -> None:
    with pytest.raises(StageError, match=r"expected validation.loss or .*'validation.ece'$"):
        check_score("validation.ece")
    check_score("validation.brier")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trials", "0"], "--trials: expected at least 1, found 0"),
        (["--confirm", "-1"], "--confirm: expected at least 0, found -1"),
        (["--dataset", "tinny"], "found 'tinny'"),
        (["--on", "loss"], "test scores must not be used for tuning"),
    ],
    ids=str,
)
def test_invalid_options_are_rejected(main: Main, options: list[str], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        main(*options)
    assert trials() == {}


def test_uncommitted_changes_are_rejected(main: Main) -> None:
    params = read_yaml(Path("params.yaml"))
    params["train"]["seed"] = 5
    write_yaml(Path("params.yaml"), params)
    with pytest.raises(StageError, match=r"params.yaml has uncommitted changes"):
        main("--trials", "1")


def test_running_trials_are_avoided(project: Path) -> None:
    """Failed ones are not."""
    search = Search("tiny", space(), "validation.loss")
    for number in range(15):
        search.record(number, search.ask(number), value=float(number))
    alone = search.ask(16)
    del search.trials[16]
    search.ask(15)
    assert search.trials[15].state == TrialState.RUNNING
    assert search.ask(16) != alone
    with pytest.raises(StageError, match=r"^train failed$"):
        search.tell(Outcome(search.name(15), "", "", "train failed"))
    assert search.trials.pop(15).state == TrialState.FAIL
    del search.trials[16]
    assert search.ask(16) == alone


def test_proposals_follow_the_scores(project: Path) -> None:
    rates = {}
    for sign in (1, -1):
        search = Search("tiny", space(), "validation.loss")
        for number in range(30):
            values: dict[str, Any] = search.ask(number)
            search.record(number, values, value=sign * np.log10(values["train.learning_rate"]))
        rates[sign] = np.median(
            [search.trials[n].params["train.learning_rate"] for n in range(20, 30)]
        )
    assert rates[1] < 0.003 < 0.03 < rates[-1]


@pytest.mark.parametrize("score", ["loss", "accuracy", "brier"])
def test_scores_per_image_have_the_reported_mean(score: str) -> None:
    run = fake_run()
    labels, probabilities = run.read("").values()
    expected = {
        "loss": metrics.cross_entropy(labels, probabilities),
        "accuracy": (probabilities.argmax(axis=1) == labels).mean(),
        "brier": metrics.brier(labels, probabilities),
    }
    scores = scores_per_image(run, f"validation.{score}")
    assert scores.shape == labels.shape
    assert scores.mean() == pytest.approx(expected[score], rel=1e-12)


def test_interval_of_a_run_is_over_its_images() -> None:
    run = fake_run()
    scores = scores_per_image(run, "validation.loss")
    expected = stats.t.interval(0.95, 49, scores.mean(), stats.sem(scores))
    assert interval([run], "validation.loss") == pytest.approx((scores.mean(), *expected))
    correct = scores_per_image(run, "validation.accuracy")
    expected = accuracy_interval(correct[None])
    assert interval([run], "validation.accuracy") == (correct.mean(), *expected)


def test_interval_of_runs_is_over_their_seeds() -> None:
    runs = [fake_run(seed) for seed in range(4)]
    means = [scores_per_image(run, "validation.loss").mean() for run in runs]
    expected = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    assert interval(runs, "validation.loss") == pytest.approx((np.mean(means), *expected))


def test_interval_is_over_both_for_published_images() -> None:
    """The interval of runs on a published validation split is over seeds and images."""
    runs = [fake_run(0, "published") for _ in range(4)]  # equal: no variance over the seeds
    found = interval(runs, "validation.loss")
    assert found == pytest.approx(interval(runs[:1], "validation.loss"))
    assert found[1] < found[0] < found[2]


def test_make_passes_the_options() -> None:
    command = ["make", "-n", "-o", ".venv/installed", "search", "SEARCH=--trials 3 --workers 2"]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    assert "tools.search --trials 3 --workers 2" in printed
