"""Compares finished runs: which setting is better, by how much, and what the runs cannot tell."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.lib.files import replacing, write_csv, write_figure
from stages.lib.results.figures import BLUE, GRAY, INK, ORANGE, draw_image, drawable
from stages.lib.stage import StageError, run
from tools.lib.runs import Run, read_runs
from tools.lib.significance import BETTER, Verdict, interval, single, verdicts

MEANS = ("errors", "loss", "ece", "parameters", "multiply_adds")
HEADER = (
    *("dataset", "model", "runs", "differs in", "seeds", "accuracy", "95 % interval"),
    *("errors", "loss", "ECE", "parameters", "multiply-adds"),
)
NUMBERS = """\
Accuracy is that of the test split, the mean and standard deviation over the seeds. Its interval is
that of the mean over seeds, for these test images; of a single model, that of the accuracy over
images (Wilson). Loss is in nats; ECE is the expected calibration error; multiply-adds are those to
predict one image. Datasets stand side by side and are not
compared: an accuracy on one says nothing of an accuracy on another.
"""
PAIRS = """
Of two settings, the difference is that of runs of the same seed, and p is for other seeds on these
images; of two single models, p is for other images. It is corrected for all pairs on the dataset
(Holm). The 95 % intervals are not: one may leave out 0 where p shows nothing. That over images is
for these models on other images, whatever p says of other seeds.
"""


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Puts together what differs in the seed alone.

    Args:
        runs: In any order.

    Returns:
        Groups by dataset, then by mean accuracy, best first; each by seed, a seed once.

    Raises:
        StageError: Two runs agree in all that decides the predictions, and differ in these; or a
            dataset has other images in one run than in another.
    """
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    images: dict[str, Run] = {}
    for each in runs:
        if images.setdefault(each.dataset, each).images != each.images:
            raise StageError(
                f"{each.name}: expected the images of {images[each.dataset].name}, whose dataset is {each.dataset} "
                "too, found others, or other classes; name runs on the same data"
            )
        group = groups.setdefault((each.dataset, each.setting), {})
        other = group.setdefault(each.seed, each)
        if other.predictions != each.predictions:
            raise StageError(
                f"{each.name}: expected the predictions of {other.name}, which has the same parameters, seed and code, "
                "found others; name only one of the two (was one run on another machine?)"
            )
    ordered = [[group[seed] for seed in sorted(group)] for group in groups.values()]
    return sorted(
        ordered, key=lambda group: (group[0].dataset, -np.mean(accuracies(group)), group[0].name)
    )


def accuracies(group: Sequence[Run]) -> list[float]:
    """Accuracy of each run on its test split."""
    return [run.scores["accuracy"] for run in group]


def differing(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What tells each group from the others with the same parameters: `key=value`, without the section but of seeds."""
    values: dict[str, set[str]] = {}
    for group in groups:
        for key, value in group[0].params.items():
            values.setdefault(key, set()).add(repr(value))
    told = {key for key, found in values.items() if len(found) > 1} - {"model.kind"}
    return [
        ", ".join(
            f"{key if key.endswith('.seed') else key.rpartition('.')[2]}={value}"
            for key, value in group[0].params.items()
            if key in told
        )
        for group in groups
    ]


def named(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The kind of model of each group, numbered where a kind has several settings; a number is one setting."""
    settings = [(str(group[0].params["model.kind"]), group[0].setting) for group in groups]
    numbers: dict[str, dict[str, int]] = {}
    for kind, setting in settings:
        of_kind = numbers.setdefault(kind, {})
        of_kind.setdefault(setting, len(of_kind) + 1)
    return [
        f"{kind} {numbers[kind][setting]}" if len(numbers[kind]) > 1 else kind
        for kind, setting in settings
    ]


def row(group: Sequence[Run], name: str, differs: str) -> dict[str, object]:
    """The numbers of one group."""
    values = accuracies(group)
    scores = group[0].scores
    several = len(values) > 1 and not single(group)
    low, high = interval(values) if several else (scores["accuracy_low"], scores["accuracy_high"])
    return {
        "dataset": group[0].dataset,
        "model": name,
        "runs": [run.name for run in group],
        "differs": differs,
        "seeds": len(values),
        "accuracy": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if several else float("nan"),
        "low": low,
        "high": high,
        **{name: float(np.mean([run.scores[name] for run in group])) for name in MEANS},
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as a person reads it."""
    runs = row["runs"]
    std = f" ± {row['std']:.4f}" if row["std"] == row["std"] else ""
    return [
        str(row["dataset"]),
        str(row["model"]),
        runs[0] if len(runs) == 1 else f"{runs[0]} … {runs[-1]}",
        str(row["differs"]),
        str(row["seeds"]),
        f"{row['accuracy']:.4f}{std}",
        f"{row['low']:.4f} to {row['high']:.4f}",
        f"{row['errors']:,.0f}",
        f"{row['loss']:.4f}",
        f"{row['ece']:.4f}",
        f"{row['parameters']:,.0f}",
        f"{row['multiply_adds']:,.0f}",
    ]


def sentence(verdict: Verdict, first: str, second: str) -> str:
    """A verdict on two settings in words, the better one first.

    Args:
        verdict: Of the first against the second.
        first: What to call it.
        second: The same.
    """
    sign = 1 if verdict.difference >= 0 else -1
    ahead, behind = (first, second)[::sign]
    ends = {"seeds": verdict.seeds, "images": verdict.images}
    over = {what: sorted((sign * pair[0], sign * pair[1])) for what, pair in ends.items() if pair}
    measured = f"{abs(verdict.difference):+.4f}"
    if over:
        intervals = [f"{low:+.4f} to {high:+.4f} over {what}" for what, (low, high) in over.items()]
        measured += f" (95 % interval {' and '.join(intervals)})"
    if verdict.how:
        measured += f", p = {verdict.p:.2g}, {verdict.how}"
        measured += f", Holm over {verdict.pairs} pairs" if verdict.pairs > 1 else ""
    if verdict.words == BETTER:
        said = f"{ahead} is better than {behind}: {measured}"
        said += "; other test images may say otherwise" * (over["images"][0] < 0)
    else:
        said = f"{ahead} and {behind}: {verdict.words}: {measured}{'; ' * bool(verdict.needed)}{verdict.needed}"
    return said + "; a single run says little of its setting" * verdict.single


def picture(table: pd.DataFrame) -> Figure:
    """Mean accuracies with their intervals, a panel with a scale of its own for each dataset."""
    datasets = [*dict.fromkeys(table["dataset"])]
    counts = [int((table["dataset"] == dataset).sum()) for dataset in datasets]
    figure = Figure((8, sum(1.1 + 0.4 * count for count in counts)), layout="constrained")
    panels = figure.subplots(
        len(datasets), 1, squeeze=False, height_ratios=[count + 1 for count in counts]
    )[:, 0]
    for axes, dataset in zip(panels, datasets, strict=True):
        part = table[table["dataset"] == dataset]
        rows = np.arange(len(part))
        axes.hlines(rows, part["low"], part["high"], color=GRAY, linewidth=6)
        filled = [BLUE if std == std else "white" for std in part["std"]]
        axes.scatter(part["accuracy"], rows, color=filled, edgecolor=BLUE, zorder=2)
        for y, (_, each) in zip(rows, part.iterrows(), strict=True):
            axes.annotate(
                f"{each['accuracy']:.4f}",
                (each["accuracy"], y),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.set_yticks(rows, part["model"], parse_math=False)
        axes.set_ylim(len(part) - 0.4, -0.8)
        axes.margins(x=0.12)
        axes.set_title(dataset, parse_math=False)
        axes.grid(axis="y", visible=False)
    figure.supxlabel(
        "accuracy on test, with its 95 % interval: over seeds; of a single model (hollow), over images",
        fontsize=9.5,
        color=INK,
    )
    return figure


def disagreements(first: Run, second: Run) -> tuple[pd.DataFrame, Figure]:
    """Test images that only one of two models gets wrong.

    Args:
        first: A run.
        second: Another one on the same images.

    Returns:
        A row for each: index (in the test split), label, and what each of the two predicts; and a
        picture of eight at most of each.
    """
    images, dataset = first.read("data/raw/test_images.npy"), first.read("data/raw/dataset.json")
    names = np.array(dataset["classes"])
    drawn = dict(zip(names, drawable(dataset["classes"]), strict=True))
    labels = first.read("data/predictions.npz")["test_labels"]
    runs = (first, second)
    guesses = [
        run.read("data/predictions.npz")["test_probabilities"].argmax(axis=1) for run in runs
    ]
    mistaken = [guess != labels for guess in guesses]
    chosen = np.flatnonzero(mistaken[0] != mistaken[1])
    table = pd.DataFrame({"index": chosen, "label": names[labels[chosen]]})
    for each, guess in zip(runs, guesses, strict=True):
        table[f"predicted by {each.name}"] = names[guess[chosen]]
    figure = Figure((11, 5), layout="constrained")
    rows = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for row, each, own, other, color in zip(
        rows, runs, mistaken, mistaken[::-1], (BLUE, ORANGE), strict=True
    ):
        only = table[(own & ~other)[chosen]]
        title = f"only {each.name} is wrong: the first {min(8, len(only))} of {len(only):,}"
        row.suptitle(title, x=0.01, ha="left", fontweight="bold", color=color)
        for axes, shown in zip_longest(row.subplots(1, 8), only[:8].to_dict("records")):
            axes.set_axis_off()
            if shown:
                draw_image(
                    axes,
                    images[shown["index"]],
                    levels=dataset["levels"],
                    background=dataset["background"],
                )
                label, predicted = (
                    drawn[shown[column]] for column in ("label", f"predicted by {each.name}")
                )
                words = f"no. {shown['index']}\nlabel {label}\npredicted {predicted}"
                axes.set_title(
                    words, loc="center", fontweight="normal", fontsize=9, parse_math=False
                )
    return table, figure


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, its columns in line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(cells_, widths, strict=True))
        + " |"
        for cells_ in (header, rule, *rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__)
    parser.add_argument(
        "revisions", nargs="*", metavar="REV", help="experiment, branch, tag or commit"
    )
    parser.add_argument(
        "--all", action="store_true", help="all experiments, on whatever commit they stand"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), help="where comparison.* goes (reports)"
    )
    args = parser.parse_args()
    groups = grouped(read_runs(args.revisions, every=args.all))
    names = named(groups)
    rows = [row(*each) for each in zip(groups, names, differing(groups), strict=True)]
    table = pd.DataFrame(rows)
    found = verdicts(groups)
    said = [
        f"- {groups[i][0].dataset}: {sentence(v, names[i], names[j])}."
        for (i, j), v in found.items()
    ]
    said = said or ["- nothing to test: no two settings on one dataset."]
    shown = lines(HEADER, [cells(each) for each in rows])
    text = "\n".join([*shown, "", *said, "", NUMBERS + PAIRS * bool(found)])
    print(text)
    write_figure(args.out / "comparison.png", picture(table))
    images = [args.out / f"comparison_images.{ending}" for ending in ("csv", "png")]
    for path in images:
        path.unlink(missing_ok=True)  # of an earlier comparison
    if len(found) == 1:
        ((i, j),) = found
        if single(groups[i]) and single(groups[j]) and found[i, j].images:
            listed, drawn = disagreements(groups[i][0], groups[j][0])
            write_csv(images[0], listed)
            write_figure(images[1], drawn)
    write_csv(args.out / "comparison.csv", table.assign(runs=table["runs"].str.join(", ")))
    with replacing(args.out / "comparison.md") as partial:
        partial.write_text(f"# Comparison\n\n{text}", encoding="utf-8")
    print(
        f"{args.out}/comparison.md, .csv, .png{', comparison_images.csv, .png' * images[0].exists()}"
    )


if __name__ == "__main__":
    run(main)
