"""Compare runs: configurations, tables of scores and differences, figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.lib.results.figures import BLUE, GRAY, INK, ORANGE, draw_image, drawable
from stages.lib.stage import StageError
from tools.lib.runs import ECE_QUANTILE, PREDICTIONS, Run
from tools.lib.significance import (
    MAX_IMAGES,
    MAX_RUNS,
    MIN_RUNS,
    Verdict,
    accuracy_interval,
    verdicts,
)

REPLICATE = ("train.seed", "normalize.seed")


def group_by_configuration(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ only in their seeds.

    Runs with identical predictions count once.

    Returns:
        Groups sorted by dataset, then by mean accuracy, best first; runs sorted by seeds.

    Raises:
        StageError: Runs of one dataset have different images, or runs of one configuration and
            the same seeds have different predictions.
    """
    groups: dict[tuple[str, str], dict[tuple[int, int], Run]] = {}
    images: dict[str, Run] = {}
    for each in runs:
        other = images.setdefault(each.dataset, each)
        if other.images != each.images:
            raise StageError(
                f"{each.name} and {other.name} have different {each.dataset} images; "
                "compare runs on the same data"
            )
        group = groups.setdefault((each.dataset, each.configuration), {})
        other = group.setdefault(each.replicate, each)
        if other.predictions != each.predictions:
            raise StageError(
                f"{each.name} and {other.name} have different predictions but equal parameters, "
                "seeds, code and requirements.lock (different machines?); pass only one"
            )
    found = []
    for group in groups.values():
        models: dict[str, Run] = {}
        for _, each in sorted(group.items()):
            models.setdefault(each.predictions, each)
        found.append([*models.values()])
    return sorted(found, key=lambda group: (group[0].dataset, -_mean(group, "accuracy")))


def _mean(group: Sequence[Run], score: str) -> float:
    return float(np.mean([each.scores.get(score, np.nan) for each in group]))


def differences(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the parameters that differ between groups as `key=value, ...`, for each group.

    Keys are without their section. A parameter that only some kinds of model have is included if
    it differs among these.
    """
    values: dict[str, set[str]] = {}
    for group in groups:
        for key, value in group[0].params.items():
            values.setdefault(key, set()).add(repr(value))
    differing = {key for key, found in values.items() if len(found) > 1} - {"model.kind"}
    return [
        ", ".join(
            f"{key.rpartition('.')[2]}={value}"
            for key, value in group[0].params.items()
            if key in differing
        )
        for group in groups
    ]


def configuration_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name each group by the common prefix of its runs' names.

    Without a common prefix, or if two configurations share it, the name consists of the kind of
    model and the differing parameters.
    """
    prefixes = [_common_prefix(group) for group in groups]
    owners: dict[str, set[str]] = {}
    for group, prefix in zip(groups, prefixes, strict=True):
        owners.setdefault(prefix, set()).add(group[0].configuration)
    names = []
    for group, prefix, differing in zip(groups, prefixes, differences(groups), strict=True):
        kind = str(group[0].params["model.kind"])
        described = f"{kind} ({differing})" if differing else kind
        names.append(prefix if prefix and len(owners[prefix]) == 1 else described)
    return names


def _common_prefix(group: Sequence[Run]) -> str:
    """Return the runs' names without dataset and final number, or "" if these differ."""
    names = [each.name.removeprefix(f"{each.dataset}-") for each in group]
    if len(names) == 1:
        return names[0]
    found = [re.fullmatch(r"(.+?)[-_. ]?\d+( \(\w+\))?", name) for name in names]
    prefixes = {match.group(1) if match else "" for match in found}
    return prefixes.pop() if len(prefixes) == 1 else ""


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in their seeds, and their results on the test split.

    Attributes:
        name: Name in tables and figures.
        runs: The runs, sorted by seeds.
        differing: Parameters that differ from other configurations.
        correct: Whether each run classifies each test image correctly, shape (runs, n), bool.
        sizes: parameters and multiply_adds.
    """

    name: str
    runs: Sequence[Run]
    differing: str
    correct: np.ndarray
    sizes: Mapping[str, int]

    @property
    def sampled(self) -> bool:
        """Whether the runs count as a sample; fewer are treated as fixed models."""
        return len(self.runs) >= MIN_RUNS


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Group runs and read their predictions.

    Raises:
        StageError: Runs are inconsistent, or predictions cannot be read.
    """
    groups = group_by_configuration(runs)
    found = []
    named = zip(groups, configuration_names(groups), differences(groups), strict=True)
    for group, name, differing in named:
        correct = []
        for each in group:
            predictions = each.read(PREDICTIONS)
            labels = predictions["test_labels"]
            correct.append(predictions["test_probabilities"].argmax(axis=1) == labels)
        sizes = {size: int(predictions[size]) for size in ("parameters", "multiply_adds")}
        found.append(Configuration(name, group, differing, np.stack(correct), sizes))
    return found


def score_table(found: Sequence[Configuration]) -> pd.DataFrame:
    """Tabulate the scores, a row per configuration."""
    rows = []
    for each in found:
        low, high = accuracy_interval(each.correct)
        accuracies = each.correct.mean(axis=1)
        rows.append(
            {
                "dataset": each.runs[0].dataset,
                "configuration": each.name,
                "runs": len(each.runs),
                "accuracy": accuracies.mean(),
                "std": accuracies.std(ddof=1) if each.sampled else np.nan,
                "low": low,
                "high": high,
                **{name: _mean(each.runs, name) for name in ("errors", "loss", "ece")},
                ECE_QUANTILE: _mean(each.runs, ECE_QUANTILE),
                **each.sizes,
                "differing": each.differing,
                "names": ", ".join(run.name for run in each.runs),
            }
        )
    return pd.DataFrame(rows)


def score_lines(table: pd.DataFrame) -> list[str]:
    """Format the scores as a Markdown table; `table` is from `score_table`."""
    header = ["dataset", "configuration", "runs", "accuracy", "95% interval", "errors", "loss"]
    header += ["ECE", "if calibrated", "parameters", "multiply-adds"]
    rows = []
    for _, row in table.iterrows():
        std = "" if pd.isna(row["std"]) else f" ± {row['std']:.4f}"
        quantile = row[ECE_QUANTILE]
        rows.append(
            [
                row["dataset"],
                row["configuration"],
                str(row["runs"]),
                f"{row['accuracy']:.4f}{std}",
                f"{row['low']:.4f} to {row['high']:.4f}",
                f"{row['errors']:,.0f}",
                f"{row['loss']:.4f}",
                f"{row['ece']:.4f}",
                "-" if pd.isna(quantile) else f"< {quantile:.4f}",
                f"{row['parameters']:,}",
                f"{row['multiply_adds']:,}",
            ]
        )
    return markdown(header, rows)


def run_lines(found: Sequence[Configuration]) -> list[str]:
    """List the runs of each configuration, their seeds, and its parameters."""
    lines = []
    for each in found:
        names = [run.name for run in each.runs]
        shown = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        seeds = (
            f"{key} {_listed([run.replicate[i] for run in each.runs])}"
            for i, key in enumerate(REPLICATE)
        )
        words = [f"{each.runs[0].dataset} {each.name}: {shown}", *seeds, each.differing]
        lines.append("- " + "; ".join(filter(None, words)))
    return lines


def _listed(values: Sequence[int]) -> str:
    """Format integers as `0`, `0 to 4`, or `1, 5, 8`."""
    found = sorted({*values})
    if len(found) > 2 and found == [*range(found[0], found[-1] + 1)]:
        return f"{found[0]} to {found[-1]}"
    return ", ".join(map(str, found))


Pair = tuple[Configuration, Configuration]


def compare_pairs(found: Sequence[Configuration], interest: float) -> list[tuple[Pair, Verdict]]:
    """Compare all pairs of configurations on the same dataset, the more accurate one first.

    Args:
        found: As returned by `configurations`.
        interest: The smallest difference in accuracy of interest.
    """
    compared = []
    for dataset in dict.fromkeys(each.runs[0].dataset for each in found):
        same = [each for each in found if each.runs[0].dataset == dataset]
        for (i, j), verdict in verdicts([each.correct for each in same], interest).items():
            compared.append(((same[i], same[j]), verdict))
    return compared


def pair_table(compared: Sequence[tuple[Pair, Verdict]]) -> pd.DataFrame:
    """Tabulate the differences, a row per pair; `compared` is from `compare_pairs`."""
    rows = []
    for (first, second), verdict in compared:
        sampled = [each.name for each in (first, second) if each.sampled]
        new = ["runs"] if len(sampled) == 2 else [f"runs of {name}" for name in sampled]
        rows.append(
            {
                "dataset": first.runs[0].dataset,
                "first": first.name,
                "second": second.name,
                "verdict": "better" if verdict.better else "no difference shown",
                "generalizes to": ", ".join(["images", *new]),
                **vars(verdict),
            }
        )
    return pd.DataFrame(rows)


def pair_lines(table: pd.DataFrame) -> list[str]:
    """Format the differences as a Markdown table; `table` is from `pair_table`."""
    words = ["dataset", "first", "second", "verdict", "generalizes to"]
    header = [*words, "difference", "95% interval", "p", "p (fixed images)"]
    header += ["runs needed", "images needed"]
    rows = []
    for row in table.to_dict("records"):
        sampled = "runs" in row["generalizes to"]
        rows.append(
            [
                *(row[name] for name in words),
                f"{row['difference']:+.4f}",
                f"{row['low']:+.4f} to {row['high']:+.4f}",
                p_text(row["p"]),
                p_text(row["p_here"]),
                size_text(row["runs_needed"], MAX_RUNS) if sampled else "-",
                size_text(row["images_needed"], MAX_IMAGES),
            ]
        )
    return markdown(header, rows)


def p_text(p: float) -> str:
    """Format p; values below .001 would rely on the normality of a few numbers."""
    if np.isnan(p):
        return "-"
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def size_text(needed: float | None, maximum: int) -> str:
    """Format a sample size, rounded up to two digits; None if it exceeds a maximum."""
    if needed is None or np.isnan(needed):
        return f"> {maximum:,}"
    step = 10 ** max(0, len(str(int(needed))) - 2)
    return f"{int(-(-needed // step) * step):,}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = []
    for cells in (header, rule, *rows):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"| {' | '.join(padded)} |")
    return lines


def accuracy_figure(table: pd.DataFrame) -> Figure:
    """Draw accuracies with intervals, a panel per dataset; `table` is from `score_table`."""
    datasets = [*dict.fromkeys(table["dataset"])]
    counts = [int((table["dataset"] == dataset).sum()) for dataset in datasets]
    figure = Figure((8, sum(1.1 + 0.4 * count for count in counts)), layout="constrained")
    heights = [count + 1 for count in counts]
    panels = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, dataset in zip(panels, datasets, strict=True):
        part = table[table["dataset"] == dataset]
        rows = np.arange(len(part))
        axes.hlines(rows, part["low"], part["high"], color=GRAY, linewidth=6)
        filled = [BLUE if runs >= MIN_RUNS else "white" for runs in part["runs"]]
        axes.scatter(part["accuracy"], rows, color=filled, edgecolor=BLUE, zorder=2)
        for y, value in zip(rows, part["accuracy"], strict=True):
            axes.annotate(
                f"{value:.4f}", (value, y), (0, 6), textcoords="offset points", ha="center", size=9
            )
        axes.set_yticks(rows, part["configuration"], parse_math=False)
        axes.set_ylim(len(part) - 0.4, -0.8)
        axes.margins(x=0.12)
        axes.set_title(dataset, parse_math=False)
        axes.grid(axis="y", visible=False)
    figure.supxlabel(
        "test accuracy with 95% confidence interval for new images and new runs "
        f"(hollow: fewer than {MIN_RUNS} runs, new images only)",
        fontsize=9,
        color=INK,
    )
    return figure


def disagreements(first: Run, second: Run) -> tuple[pd.DataFrame, Figure]:
    """Find and draw the test images that only one of two models misclassifies.

    Args:
        first: A run.
        second: Another run on the same images.

    Returns:
        A row per image: index in the test split, label, and both predictions; and a figure of the
        first eight of each model.
    """
    images = first.read("data/raw/test_images.npy")
    dataset = first.read("data/raw/dataset.json")
    names = np.array(dataset["classes"])
    older = {"levels": (0, 255), "background": 0}  # older runs do not record them
    style = {name: dataset.get(name, value) for name, value in older.items()}
    drawn = dict(zip(names, drawable(dataset["classes"]), strict=True))
    runs = first, second
    predictions = [each.read(PREDICTIONS) for each in runs]
    labels = predictions[0]["test_labels"]
    predicted = [each["test_probabilities"].argmax(axis=1) for each in predictions]
    wrong = [guess != labels for guess in predicted]
    chosen = np.flatnonzero(wrong[0] != wrong[1])
    table = pd.DataFrame({"index": chosen, "label": names[labels[chosen]]})
    for each, guess in zip(runs, predicted, strict=True):
        table[f"predicted by {each.name}"] = names[guess[chosen]]
    figure = Figure((11, 5), layout="constrained")
    rows = figure.subfigures(2, 1, squeeze=False)[:, 0]
    colors = BLUE, ORANGE
    for row, each, own, color in zip(rows, runs, wrong, colors, strict=True):
        only: list[dict[Any, Any]] = table[own[chosen]].to_dict("records")
        shown = min(8, len(only))
        title = f"misclassified by {each.name} only: first {shown} of {len(only):,}"
        row.suptitle(title, x=0.01, ha="left", fontweight="bold", color=color, parse_math=False)
        for axes, image in zip_longest(row.subplots(1, 8), only[:8]):
            axes.set_axis_off()
            if image:
                draw_image(axes, images[image["index"]], **style)
                words = f"no. {image['index']}\nlabel {drawn[image['label']]}\n"
                words += f"predicted {drawn[image[f'predicted by {each.name}']]}"
                axes.set_title(
                    words, loc="center", fontweight="normal", fontsize=9, parse_math=False
                )
    return table, figure
