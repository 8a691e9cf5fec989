"""Report on a dataset before training, as Markdown and a figure."""

from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from stages.lib.files import read_chunks
from stages.lib.results import figures  # the style of all figures
from stages.lib.sources.pictures import border
from tools.lib.imports import Published

MIN_TEST_IMAGES = 20  # per class; with fewer, the recall is very uncertain
MAX_EXAMPLES = 5  # images or classes named in a finding
MAX_SIZES = 10  # formats and sizes of files listed
COLUMNS, ROWS = 12, 40  # samples per class and classes in the figure


def _named(names: list[str], rows: np.ndarray) -> str:
    more = f" and {len(rows) - MAX_EXAMPLES:,} more" if len(rows) > MAX_EXAMPLES else ""
    return ", ".join(f"`{names[row]}`" for row in rows[:MAX_EXAMPLES]) + more


def _counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def _duplicates(published: Published, prints: np.ndarray) -> list[str]:
    values, counts_of = np.unique(prints, return_counts=True)
    repeated = np.flatnonzero(np.isin(prints, values[counts_of > 1]))
    order = repeated[np.argsort(prints[repeated], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(prints[order])) + 1)
    splits, classes = published.splits, published.classes
    within: Counter[str] = Counter()
    across: list[int] = []
    conflicts: list[int] = []
    for rows in (group.tolist() for group in groups):
        counts = Counter(splits[row] for row in rows)
        within.update({split: count - 1 for split, count in counts.items() if count > 1})
        across += rows if len(counts) > 1 else []
        conflicts += rows if len({classes[row] for row in rows}) > 1 else []
    findings = [
        f"{_counted(count, 'exact duplicate')} within {split}" for split, count in within.items()
    ]
    for rows, finding in (
        (across, "images are in several splits (leakage: inflates test accuracy)"),
        (conflicts, "identical images have different labels"),
    ):
        if rows:
            shown = _named(published.names, np.array(sorted(rows)))
            findings.append(f"{len(rows):,} {finding}: {shown}")
    return findings or ["no exact duplicates"]


def _pixels(published: Published) -> list[str]:
    constant, bright = [], []
    for chunk in read_chunks(published.pixels, 256):
        flat = chunk.reshape(len(chunk), -1)
        constant.append(flat.min(axis=1) == flat.max(axis=1))
        edges = border(chunk).reshape(len(chunk), -1)
        bright.append(np.median(edges, axis=1) - flat.mean(axis=1))
    findings = []
    if (rows := np.flatnonzero(np.concatenate(constant))).size:
        findings.append(f"{_counted(len(rows), 'constant image')}: {_named(published.names, rows)}")
    # If nearly all images have a darker border than center, the few others may be inverted.
    contrast = np.concatenate(bright)
    clear = np.abs(contrast) > 16
    rest = np.sign(np.median(contrast[clear])) if clear.any() else 0
    rows = np.flatnonzero(clear & (np.sign(contrast) == -rest))
    if 0 < len(rows) <= clear.sum() / 10:
        polarity = "dark on light" if rest < 0 else "light on dark"
        findings.append(
            f"{_counted(len(rows), 'image is', 'images are')} {polarity}, unlike the rest: "
            f"{_named(published.names, rows)}"
        )
    return findings


def _rare(published: Published, classes: list[str]) -> list[str]:
    counts = Counter(zip(published.splits, published.classes, strict=True))
    findings = []
    findings += [
        f"no test image of class {name}: its recall cannot be measured"
        for name in classes
        if not counts["test", name]
    ]
    if few := [name for name in classes if 0 < counts["test", name] < MIN_TEST_IMAGES]:
        least = min(counts["test", name] for name in few)
        shown = ", ".join(few[:MAX_EXAMPLES]) + (", ..." if len(few) > MAX_EXAMPLES else "")
        having = _counted(len(few), "class has", "classes have")
        findings.append(
            f"{having} fewer than {MIN_TEST_IMAGES} test images ({shown}): "
            f"with {_counted(least, 'image')}, the 95% interval of a recall is about "
            f"±{100 / least**0.5:.0f} percentage points"
        )
    sizes = {name: counts["train", name] for name in classes}
    rarest, commonest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[commonest] >= 3 * sizes[rarest]:
        findings.append(
            f"{rarest} has {sizes[rarest]:,} training images and {commonest} {sizes[commonest]:,}: "
            "accuracy mostly reflects the common classes; check the recall of each class"
        )
    if sizes[rarest] < 10:
        findings.append(
            f"{rarest} has {_counted(sizes[rarest], 'training image')}: a 10% validation split "
            "contains at most one of them"
        )
    return findings


def report(name: str, published: Published, classes: list[str], prints: np.ndarray) -> str:
    """Describe a dataset in Markdown.

    Args:
        name: The name of the dataset and its figure.
        published: The images, their classes and splits.
        classes: Class names in the order of their numbers.
        prints: Hashes of the images, shape (n,).
    """
    counts = Counter(zip(published.splits, published.classes, strict=True))
    splits = [s for s in ("train", "validation", "test") if s in published.splits]
    findings = [
        *_duplicates(published, prints),
        *_pixels(published),
        *_rare(published, classes),
        *published.notes,
    ]
    kinds = published.sizes.most_common()
    files = [f"- {count:,}: {kind}" for kind, count in kinds[:MAX_SIZES]]
    if more := kinds[MAX_SIZES:]:
        files.append(
            f"- {sum(count for _, count in more):,}: {len(more):,} other formats and sizes"
        )
    total = ["**all**", *(f"**{published.splits.count(split):,}**" for split in splits)]
    rows = [["class", *splits], ["---"] + ["--:"] * len(splits), total]
    for label in classes:
        cell = label.replace("|", r"\|")
        rows.append([cell, *(f"{counts[split, label]:,}" for split in splits)])
    return "\n".join(
        [
            f"# {name}\n",
            *(f"- {finding}" for finding in findings),
            "\n## Files as found (height x width)\n",
            *files,
            "\n## Images per class\n",
            *(f"| {' | '.join(row)} |" for row in rows),
            f"\n![Training images of each class]({name}.png)\n",
        ]
    )


def samples(name: str, published: Published, classes: list[str]) -> Figure:
    """Draw the first training images of each class, one row per class."""
    pixels = np.load(published.pixels, mmap_mode="r")
    labels, splits = np.array(published.classes), np.array(published.splits)
    shown = classes[:ROWS]
    height, width = pixels.shape[1:3]
    # Gaps are NaN in gray and white in color, so gray levels fill the range from black to white.
    gap = 1.0 if pixels.ndim == 4 else np.nan
    size = len(shown) * (height + 1), COLUMNS * (width + 1), *pixels.shape[3:]
    mosaic = np.full(size, gap)
    for line, label in enumerate(shown):
        rows = np.flatnonzero((labels == label) & (splits == "train"))[:COLUMNS]
        for place, row in enumerate(rows):
            top, left = line * (height + 1), place * (width + 1)
            mosaic[top : top + height, left : left + width] = pixels[row] / 255
    figure = Figure((8, 1 + 7 * mosaic.shape[0] / mosaic.shape[1]), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="gray")
    centers = [(line + 0.5) * (height + 1) for line in range(len(shown))]
    axes.set_yticks(centers, figures.drawable(classes)[:ROWS], parse_math=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_title(f"{name}: training images of each class", color=figures.INK)
    return figure
