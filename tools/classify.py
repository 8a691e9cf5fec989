"""Classify image files with a trained model: `python -m tools.classify FILE_OR_FOLDER ...`."""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import wcwidth
from PIL import Image

from stages.lib.sources import pictures
from stages.lib.stage import StageError, run
from tools.lib.classifier import MODEL, RAW, Classifier, Prepared, read_classifier
from tools.lib.imports import walk

BATCH = 512  # images in memory at a time
DRAWN = 20  # maximum number of images in a figure


@dataclass(frozen=True)
class Result:
    """A classified file: the model's input (uint8) and its probabilities, shape (classes,)."""

    file: Path
    image: np.ndarray
    steps: tuple[str, ...]
    probabilities: np.ndarray
    unusual: bool

    def best(self, count: int) -> list[int]:
        """Return the most probable classes."""
        numbers: list[int] = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return numbers


def find_files(paths: Sequence[Path], faults: list[str]) -> list[Path]:
    """Return the given files, and the images in the given folders, in natural order.

    Print the number of other files in each folder.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = [*walk(path, Counter())]
        names = [name for name in found if name.lower().endswith(pictures.SUFFIXES)]
        files += [path / name for name in names]
        if not names:
            report(faults, path, f"no images ({', '.join(pictures.SUFFIXES)})")
        elif others := len(found) - len(names):
            print(f"{path}: skipped files that are not images: {others:,}", file=sys.stderr)
    return files


def report(faults: list[str], path: Path, reason: object) -> None:
    faults.append(f"{path}: {reason}")
    print(faults[-1], file=sys.stderr)


def classify(classifier: Classifier, files: Sequence[Path], faults: list[str]) -> Iterator[Result]:
    """Classify files batch by batch; report and skip those that cannot be read."""
    for start in range(0, len(files), BATCH):
        prepared: list[tuple[Path, Prepared]] = []
        for file in files[start : start + BATCH]:
            try:
                prepared.append((file, classifier.prepare(file)))
            except StageError as error:
                report(faults, file, error)
        if prepared:
            images = np.stack([each.image for _, each in prepared])
            odd = classifier.unusual(images)
            odd = np.zeros(len(images), bool) if odd is None else odd
            found = zip(prepared, classifier.predict(images), odd.tolist(), strict=True)
            for (file, each), probabilities, unusual in found:
                yield Result(file, each.image, each.steps, probabilities, unusual)


def print_csv(classes: Sequence[str], results: Iterable[Result]) -> int:
    """Print a row per file: file, class, confidence, and the probability of each class.

    Returns:
        The number of unusual images.
    """
    unusual = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "class", "confidence", *classes])
    for result in results:
        numbers = [f"{share:.9g}" for share in result.probabilities]  # exact for float32
        (best,) = result.best(1)
        table.writerow([result.file, classes[best], numbers[best], *numbers])
        unusual += result.unusual
    return unusual


def print_table(
    files: Sequence[Path], top: int, classes: Sequence[str], results: Iterable[Result]
) -> int:
    """Print a line per file with its most probable classes, then how the images were prepared.

    Returns:
        The number of unusual images.
    """
    width = max((wcwidth.width(str(file)) for file in files), default=0)
    room = max(wcwidth.width(name) for name in (*classes, "runner-up"))

    def line(file: str, ranked: Iterable[tuple[str, str]], note: str) -> str:
        cells = [f"{wcwidth.ljust(name, room)}  {share:10}" for name, share in ranked]
        return "  ".join([wcwidth.ljust(file, width), *cells, note]).rstrip()

    ranks = ["class", "runner-up", *(f"no. {rank}" for rank in range(3, top + 1))]
    steps: dict[tuple[str, ...], list[str]] = {}
    unusual = 0
    for result in results:
        if not steps:
            print(line("file", [(rank, "confidence") for rank in ranks[:top]], ""))
        ranked = [(classes[i], f"{result.probabilities[i]:.4f}") for i in result.best(top)]
        print(line(str(result.file), ranked, "unusual" if result.unusual else ""))
        steps.setdefault(result.steps, []).append(str(result.file))
        unusual += result.unusual
    for taken, names in steps.items():
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        done = ", ".join(taken) or "unchanged"
        print(f"prepared {', '.join(names[:3])}{more}: {done}")
    return unusual


def draw(classes: Sequence[str], path: Path, results: Sequence[Result]) -> None:
    """Draw each file, the model's input, and the three most probable classes."""
    from matplotlib.figure import Figure  # slow to import, rarely needed

    from stages.lib.files import write_figure
    from stages.lib.results import figures

    names = figures.drawable([shorten(name, 24) for name in classes])
    titles = figures.drawable(
        [shorten(each.file.name, 24) + ", unusual" * each.unusual for each in results]
    )
    across = 1 if len(results) <= 4 else 2
    down = -(-len(results) // across)
    figure = Figure((5 * across, 1.5 * down + 0.3), layout="constrained")
    grid = figure.subplots(down, 3 * across, squeeze=False, width_ratios=[1, 1, 1.8] * across)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_visible(False)
    for axes, text in zip(grid[0], ("file", "model input", "") * across, strict=True):
        axes.set_title(text)
    for result, title, (left, middle, right) in zip(
        results, titles, grid.reshape(-1, 3), strict=False
    ):
        with pictures.strict(), pictures.open_image(result.file) as (_, opened):
            image = pictures.decode(opened, gray=False, background=(255,))
        thumbnail = Image.fromarray(image)  # type: ignore[arg-type]  # a background is given
        thumbnail.thumbnail((300, 300))
        for axes in (left, middle, right):
            axes.set_visible(True)
            axes.grid(False)
            axes.spines[:].set_visible(axes is not right)
        left.imshow(thumbnail)
        middle.imshow(result.image, cmap="gray", vmin=0, vmax=255)
        right.text(0, 1, title, va="center", fontsize=9, fontweight="bold", parse_math=False)
        for place, number in enumerate(result.best(3)):
            share = result.probabilities[number]
            right.barh(-place, share, height=0.8, color=figures.BLUE, alpha=0.35)
            label = f"{names[number]}  {share:.1%}"
            right.text(0.02, -place, label, va="center", fontsize=9, parse_math=False)
        right.set(xlim=(0, 1), ylim=(-2.5, 1.5))
    write_figure(path, figure)


def shorten(name: str, columns: int) -> str:
    return name if wcwidth.width(name) <= columns else f"{wcwidth.clip(name, 0, columns - 1)}…"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.classify", description=__doc__)
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER", help="image files or folders")
    add("--model", type=Path, default=MODEL, metavar="FILE", help=f"a model file ({MODEL})")
    add("--top", type=int, default=2, metavar="N", help="print the N most probable classes (2)")
    add("--csv", action="store_true", help="print all probabilities as CSV")
    add(
        "--show",
        type=Path,
        metavar="PNG",
        help=f"draw the model's input for the first {DRAWN} files",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    classifier, faults = read_classifier(args.model), list[str]()
    classes, title = classifier.model.classes, classifier.model.title
    if not 1 <= args.top <= len(classes):
        raise StageError(f"--top: expected 1 to {len(classes)} classes, found {args.top}")
    if classifier.unusual(np.zeros((1, *classifier.model.image), np.uint8)) is None:
        print(f"unusual images cannot be flagged: {RAW} does not contain {title}", file=sys.stderr)
    if args.show and (args.show.suffix.lower() != ".png" or args.show.is_dir()):
        raise StageError(f"--show: expected the name of a PNG file, found {args.show}")
    files = find_files(args.paths, faults)
    results = classify(classifier, files, faults)
    first = [*islice(results, DRAWN)] if args.show else []
    printed = print_csv if args.csv else partial(print_table, files, args.top)
    unusual = printed(classes, chain(first, results))
    if unusual:
        print(
            f"unusual: {unusual:,} of {len(files):,} images are unlike the training data "
            f"({title}); their classes and confidences may be meaningless",
            file=sys.stderr,
        )
    if first:
        draw(classes, args.show, first)
        print(f"{args.show}: {len(first):,} of {len(files):,} files", file=sys.stderr)
    if faults:
        raise StageError(f"unreadable paths: {len(faults):,}; see above")


if __name__ == "__main__":
    run(main)
