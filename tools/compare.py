"""Compare the accuracy of finished runs, with confidence intervals and tests."""

import argparse
from pathlib import Path

from stages.lib.files import replacing, write_csv, write_figure
from stages.lib.stage import StageError, run
from tools.lib import comparison
from tools.lib.runs import read_runs
from tools.lib.significance import MIN_RUNS

SCORES = f"""\
Accuracy is measured on the test split: mean ± standard deviation over the runs. Its 95% confidence
interval accounts for the sampling of test images and runs; with fewer than {MIN_RUNS} runs, of test
images only. Loss is in nats. ECE is the expected calibration error; a perfectly calibrated model
stays below "if calibrated" in 95% of cases. Multiply-adds are per image.
"""
PAIRS = f"""\
"Better" means that the first is more accurate with p < .05. The verdict generalizes to new test
images and, for configurations with at least {MIN_RUNS} runs, to new runs with other values of the
seeds listed above. Configurations with fewer runs are treated as fixed models. p is Holm-corrected
over all pairs of a dataset; intervals are not. "p (fixed images)" generalizes to new runs on these
test images only. The last two columns are the runs per configuration and the test images needed to
detect a true difference of {{:g}} with 80% power, each with the other unchanged. Datasets are not
compared with each other. docs/experiments.md explains the method.
"""
HEADER = """# Comparison

This page shows the test accuracy of each configuration, and compares every pair of configurations.
It is written by `make compare`.

![Test accuracy of each configuration](comparison.png)

"""
OPTIONAL = ("comparison_pairs.csv", "comparison_images.csv", "comparison_images.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__)
    parser.add_argument(
        "revisions",
        nargs="*",
        metavar="REV",
        help="experiments, branches, tags or commits (default: all experiments on HEAD)",
    )
    parser.add_argument("--all", action="store_true", help="all experiments on all commits")
    parser.add_argument(
        "--difference",
        type=float,
        default=0.005,
        metavar="D",
        help="smallest difference in accuracy of interest (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("reports"), help="output folder (reports)")
    arguments = parser.parse_args()
    if not 0 < arguments.difference < 1:
        raise StageError(
            f"--difference: expected a number between 0 and 1, found {arguments.difference}"
        )
    return arguments


def main() -> None:
    arguments = parse_arguments()
    found = comparison.configurations(read_runs(arguments.revisions, every=arguments.all))
    scores = comparison.score_table(found)
    lines = [*comparison.score_lines(scores), "", *comparison.run_lines(found), "", SCORES]
    compared = comparison.compare_pairs(found, arguments.difference)
    pairs = comparison.pair_table(compared)
    if compared:
        lines += [*comparison.pair_lines(pairs), ""]
        lines.append(PAIRS.format(arguments.difference))
    else:
        lines += [
            "No dataset has two configurations to compare.",
            'COMPARE="--all" adds the experiments of other commits.\n',
        ]
    text = "\n".join(lines)
    print(text)
    for name in OPTIONAL:  # left by an earlier comparison
        (arguments.out / name).unlink(missing_ok=True)
    files = {"comparison.csv": scores} | ({"comparison_pairs.csv": pairs} if compared else {})
    figures = {"comparison.png": comparison.accuracy_figure(scores)}
    if len(compared) == 1:
        ((first, second), _) = compared[0]
        if len(first.runs) == len(second.runs) == 1 and (first.correct != second.correct).any():
            table, figure = comparison.disagreements(first.runs[0], second.runs[0])
            files["comparison_images.csv"], figures["comparison_images.png"] = table, figure
    for name, table in files.items():
        write_csv(arguments.out / name, table)
    for name, figure in figures.items():
        write_figure(arguments.out / name, figure)
    with replacing(arguments.out / "comparison.md") as partial:
        partial.write_text(f"{HEADER}{text}", encoding="utf-8")
    written = (str(arguments.out / name) for name in ("comparison.md", *files, *figures))
    print("written:", ", ".join(written))


if __name__ == "__main__":
    run(main)
