"""Finished runs of the pipeline, read from Git and from DVC's cache without a checkout."""

import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from dvc_data.index import DataIndexDirError

from stages.lib.files import DAMAGED
from stages.lib.params import parse_yaml
from stages.lib.stage import StageError

SCORES = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "errors",
    "loss",
    "ece",
    "parameters",
    "multiply_adds",
)
METRICS = "reports/metrics.json"
MAKERS = ("normalize", "train", "predict")  # what they do decides the predictions


@dataclass(frozen=True)
class Run:
    """One run, as dvc.lock and the reports of its commit tell it.

    Attributes:
        name: What the user calls it, or DVC: an experiment, a branch, a commit.
        dataset: Its key in datasets.yaml.
        images: DVC's digest of data/raw, classes and all.
        seed: `train.seed`.
        params: What else decided the predictions, by dotted key; `code` stands for the stages'
            source.
        scores: `SCORES` of reports/metrics.json.
        predictions: DVC's digest of data/predictions.npz.
        files: Of its commit, those in DVC's cache among them.
    """

    name: str
    dataset: str
    images: str
    seed: int
    params: Mapping[str, object]
    scores: Mapping[str, float]
    predictions: str
    files: DVCFileSystem = field(repr=False, compare=False)

    @property
    def setting(self) -> str:
        """All that decided the predictions but the dataset and the seed, as one text."""
        return repr(sorted(self.params.items()))

    def read(self, path: str) -> Any:  # noqa: ANN401  # an array, several by name, or what JSON holds
        """An npy, npz or JSON file of the run.

        Raises:
            StageError: DVC's cache does not have it, or not whole.
        """
        try:
            content = self.files.read_bytes(path)
            return (
                json.loads(content)
                if path.endswith(".json")
                else np.load(io.BytesIO(content), allow_pickle=False)
            )
        except (*DAMAGED, DvcException, DataIndexDirError) as error:
            words = " ".join(str(error).split())
            raise StageError(
                f"{self.name}: {path}: expected it whole in DVC's cache, found: {words}; dvc pull, or run it again"
            ) from error


def md5(content: bytes) -> str:
    """By which DVC knows a file."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def flat(content: Mapping[str, object], *prefix: str) -> dict[str, object]:
    """A nested mapping by dotted keys."""
    found: dict[str, object] = {}
    for key, value in content.items():
        found |= (
            flat(value, *prefix, key)
            if isinstance(value, dict)
            else {".".join((*prefix, key)): value}
        )
    return found


def read_run(name: str, commit: str) -> Run:
    """Reads one run.

    Args:
        name: What to call it.
        commit: Where it is, a hash.

    Raises:
        StageError: There is no finished run of this pipeline.
    """
    files = DVCFileSystem(".", rev=commit)
    try:
        content: Any = parse_yaml(files.read_text("dvc.lock", encoding="utf-8"), "dvc.lock")
        lock = content["stages"]
        reported = files.read_bytes(METRICS)
        scores = json.loads(reported)
        params: dict[str, object] = {}
        for stage in ("fetch", *MAKERS):
            params |= flat(lock[stage]["params"]["params.yaml"])
        code = {
            (dep["path"], dep["md5"])
            for stage in MAKERS
            for dep in lock[stage]["deps"]
            if "stages/" in dep["path"]
        }
        (predictions,) = (out["md5"] for out in lock["predict"]["outs"])
        (images,) = (dep["md5"] for dep in lock["normalize"]["deps"] if dep["path"] == "data/raw")
        measured = {
            item["path"]: item["md5"]
            for item in lock["evaluate"]["deps"] + lock["evaluate"]["outs"]
        }
        if measured["data/predictions.npz"] != predictions or measured[METRICS] != md5(reported):
            raise ValueError("reports of other predictions; dvc repro")
        seed, dataset = params.pop("train.seed"), str(params.pop("dataset"))
        params.pop("fetch.source")  # the images are the same wherever they came from
        if params["model.kind"] == "pca_knn":  # looks at nothing of it
            params = {key: value for key, value in params.items() if not key.startswith("train.")}
        params["code"] = hashlib.sha256(repr(sorted(code)).encode()).hexdigest()[:7]
        scores = {name: float(scores[name]) for name in SCORES}
    except (StageError, OSError, DvcException, LookupError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        words = f"no {words}" if isinstance(error, LookupError) else words or type(error).__name__
        raise StageError(
            f"{name}: expected a finished run (dvc.lock, reports), found: {words}"
        ) from error
    if not 0 <= scores["accuracy"] <= 1 or not isinstance(seed, int):
        raise StageError(
            f"{name}: expected an accuracy from 0 to 1 and a whole seed, found {scores['accuracy']} and {seed!r}"
        )
    return Run(name, dataset, images, seed, params, scores, predictions, files)


def read_runs(names: Sequence[str], *, every: bool = False) -> list[Run]:
    """Reads runs by name.

    Args:
        names: Experiments, branches, tags, commits; if there are none, the experiments on HEAD.
        every: Whether to read all experiments, on whatever commit they stand.

    Returns:
        The runs, in the order given; a commit named twice is read once.

    Raises:
        StageError: A name means nothing or no finished run, or nothing is there to be compared. An
            experiment that nobody named and that is no finished run is left out, and said so.
    """
    with Repo() as repo:
        commits: dict[str, str] = {}
        for name in names:
            try:
                if not name:  # which Git takes for HEAD
                    raise RevError("no name")
                commits.setdefault(resolve_rev(repo.scm, name), name)
            except (RevError, DvcException) as error:
                raise StageError(
                    f"{name}: expected an experiment, a branch, a tag or a commit, found: {error}; dvc exp list"
                ) from error
        if every or not names:
            found = repo.experiments.ls(all_commits=every).items()
            listed = [
                (name, commit, base) for base, named in found for name, commit in sorted(named)
            ]
            times = Counter(name for name, _, _ in listed)
            commits = {
                commit: name if times[name] == 1 else f"{name} ({base[:7]})"
                for name, commit, base in listed
            } | commits
    if not commits:
        raise StageError(
            "experiments: expected some, found none on this commit; make experiments, or name revisions"
        )
    runs = []
    for commit, name in commits.items():
        try:
            runs.append(read_run(name, commit))
        except StageError as error:
            if name in names:
                raise
            print(f"left out: {error}", file=sys.stderr)
    if not runs:
        raise StageError(
            f"experiments: expected finished runs, found none among {len(commits)}; make experiments"
        )
    return runs
