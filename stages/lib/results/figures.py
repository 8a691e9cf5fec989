"""Draw figures of images, training and results; callers save them."""

import logging
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogFormatter, MaxNLocator

MAX_COUNTS = 20  # classes in a confusion matrix with counts in its cells
MAX_ROWS = 64  # classes in a chart that fits a page
BLUE, ORANGE, GRAY, INK = "#1f6f9f", "#d9622b", "#b8c0c8", "#22292f"

mpl.rcdefaults()  # the user's matplotlibrc would change the figures
mpl.rcParams.update(
    {
        "font.family": "DejaVu Sans",  # ships with matplotlib
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRAY,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e7eaed",
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "figure.dpi": 120,
    }
)

# Do not warn about fonts without a bold face; titles then use the regular one.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

# Prefixes of preferred font files for characters that DejaVu Sans lacks. Other fonts follow in
# alphabetical order.
FONTS = ("NotoSansCJK", "NotoSansKR", "NotoSansJP", "NanumGothic", "NotoSans", "AppleSDGothicNeo")


def _preference(path: str) -> tuple[int, bool, str, str]:
    name = Path(path).stem
    preferred = next((i for i, start in enumerate(FONTS) if name.startswith(start)), len(FONTS))
    return preferred, "Regular" not in name, name, path


@cache
def _face(path: str) -> tuple[str, frozenset[int]]:
    """Return the family and code points of a font file; both are empty for unusable fonts."""
    try:
        font = FT2Font(path)
    except RuntimeError:  # damaged
        return "", frozenset()
    placeholder = font.family_name.replace(" ", "").startswith(("LastResort", ".LastResort"))
    if placeholder or not font.scalable:
        return "", frozenset()
    return font.family_name, frozenset(font.get_charmap())


@cache
def _add_family(path: str) -> None:
    """Append the family of a font file, bold face included, to the fallback fonts."""
    family, _ = _face(path)
    for sibling in sorted(font_manager.findSystemFonts([str(Path(path).parent)])):
        if _face(sibling)[0] == family:
            font_manager.fontManager.addfont(sibling)
    mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], family]


@cache
def _undrawable(text: str) -> str:
    """Return the characters that DejaVu Sans lacks, or "" after adding a font that has them all.

    DejaVu Sans stays first, so an added font does not change any other text. Fonts are read from
    disk because matplotlib's own list misses fonts installed after its first use.
    """
    missing = {ord(character) for character in text}
    missing -= _face(font_manager.findfont("DejaVu Sans"))[1]
    if not missing:
        return ""
    for path in sorted(font_manager.findSystemFonts(), key=_preference):
        if missing <= _face(path)[1]:
            _add_family(path)
            return ""
    return "".join(map(chr, sorted(missing)))


@cache
def _advise(missing: str) -> None:
    """Print, once, the package with a font for a character."""
    name = unicodedata.name(missing, "UNKNOWN")
    script = name.split()[0]
    if script in ("HANGUL", "CJK", "HIRAGANA", "KATAKANA"):
        debian, homebrew = "fonts-noto-cjk", "font-noto-sans-cjk"
    else:
        debian, homebrew = "fonts-noto-core", f"font-noto-sans-{script.lower()}"
    print(
        f"no installed font has U+{ord(missing):04X} {name}, so figures show class numbers instead "
        f"of names; install {debian} (apt) or {homebrew} (brew), then run "
        "dvc repro --force --single-item plot extract_errors",
        file=sys.stderr,
    )


def drawable(names: Sequence[str]) -> list[str]:
    """Return the class names, or the class numbers if no installed font can draw all names."""
    if _undrawable("".join(names)):  # no single font has all names; try a font per name
        missing = "".join(map(_undrawable, names))
        if missing:
            _advise(missing[0])
            return [str(number) for number in range(len(names))]
    return [*names]


def draw_image(axes: Axes, image: np.ndarray, *, levels: tuple[int, int], background: int) -> None:
    """Draw an image as published, except that light-on-dark gray images are inverted.

    Args:
        axes: The axes to draw on.
        image: Shape (height, width) or (height, width, 3), uint8.
        levels: Lowest and highest level of the dataset's training images.
        background: Background level of these images, the median of their border pixels.
    """
    low, high = levels
    if image.ndim == 3:
        stretch = np.interp(np.arange(256), [low, max(high, low + 1)], [0, 255])
        axes.imshow(stretch.round().astype(np.uint8)[image])
    else:
        color_map = "gray_r" if background < (low + high) / 2 else "gray"
        axes.imshow(image, cmap=color_map, vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.grid(False)


def _width(text: str) -> int:
    """Return the number of text columns; a wide East Asian character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _short(name: str, columns: int = 18) -> str:
    if _width(name) <= columns:
        return name
    while _width(name) > columns - 1:
        name = name[:-1]
    return f"{name}…"


def _drawable_title(title: str) -> str:
    """Remove characters that no installed font has, and punctuation left before a colon."""
    missing = _undrawable(title)
    if not missing:
        return title
    kept = "".join(character for character in title if character not in missing)
    return re.sub(r"(\(\s*\)|[\s,])+:", ":", kept).strip(" :")


def _wrappable_title(title: str) -> str:
    """Escape dollar signs: matplotlib parses math in wrapped text even with `parse_math=False`."""
    return _drawable_title(title).replace("$", r"\$")


def _set_title(figure: Figure, title: str) -> None:
    style = {"fontweight": "bold", "fontsize": 12, "wrap": True}
    figure.suptitle(_wrappable_title(title), x=0.02, ha="left", **style)


def _set_axes_title(axes: Axes, title: str) -> None:
    axes.set_title(_wrappable_title(title), wrap=True)


def _grid(images: np.ndarray, title: str, text_height: float) -> tuple[Figure, list[Axes]]:
    """Create a grid with one axes per image, as tall as the image and its text (in inches)."""
    count, height, width = images.shape[:3]
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    row_height = 1.75 * min(height / width, 2) + text_height
    figure = Figure((max(1.75 * columns, 5), row_height * rows + 0.5), layout="constrained")
    _set_title(figure, title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes


def samples(
    title: str,
    images: np.ndarray,
    labels: Sequence[str],
    *,
    levels: tuple[int, int],
    background: int,
) -> Figure:
    """Draw a grid of images with their class names.

    Args:
        title: Title of the figure.
        images: Shape (n, height, width) or (n, height, width, 3), uint8.
        labels: n class names.
        levels: See `draw_image`.
        background: See `draw_image`.
    """
    figure, grid = _grid(images, title, text_height=0.2)
    for axes, image, label in zip(grid, images, labels, strict=False):
        draw_image(axes, image, levels=levels, background=background)
        axes.set_title(
            _short(label),
            loc="center",
            fontweight="normal",
            fontsize=10,
            pad=4,
            parse_math=False,
        )
    return figure


def errors(
    title: str,
    images: np.ndarray,
    labels: Sequence[str],
    predicted: Sequence[str],
    confidence: np.ndarray,
    *,
    levels: tuple[int, int],
    background: int,
) -> Figure:
    """Draw a grid of misclassified images with label, predicted class and confidence.

    Args:
        title: Title of the figure.
        images: Shape (n, height, width) or (n, height, width, 3), uint8; n may be 0.
        labels: n class names.
        predicted: Names of the n predicted classes.
        confidence: Probabilities of the predicted classes, shape (n,), in [0, 1].
        levels: See `draw_image`.
        background: See `draw_image`.
    """
    figure, grid = _grid(images, title, text_height=0.5)
    for axes, image, label, guess, probability in zip(
        grid, images, labels, predicted, confidence, strict=False
    ):
        draw_image(axes, image, levels=levels, background=background)
        for text, up, color in (
            (_short(label), 17, BLUE),
            (f"{_short(guess, 14)} {probability:.0%}", 4, ORANGE),
        ):
            axes.annotate(
                text,
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, up),
                textcoords="offset points",
                color=color,
                parse_math=False,
            )
    if len(images):
        figure.supxlabel("blue: label   orange: prediction and its confidence", fontsize=9.5)
    else:
        grid[0].text(0.5, 0.5, "none", ha="center")
    return figure


def history(title: str, epochs: pd.DataFrame, held_out: str) -> Figure:
    """Draw loss (nats) and accuracy by epoch.

    Args:
        title: Title of the figure.
        epochs: Columns epoch, loss, accuracy, val_loss, val_accuracy; a row per epoch.
        held_out: Name of the split behind the val_ columns.
    """
    figure = Figure((9, 3.8), layout="constrained")
    _set_title(figure, title)
    for axes, name, unit in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (" (nats)", ""), strict=True
    ):
        marker = "o" if len(epochs) <= 30 else ""
        axes.plot(
            epochs["epoch"], epochs[name], color=BLUE, marker=marker, markersize=4, label="training"
        )
        axes.plot(
            epochs["epoch"],
            epochs[f"val_{name}"],
            color=ORANGE,
            marker=marker,
            markersize=4,
            label=held_out,
        )
        axes.set_title(f"{name}{unit}", fontweight="normal")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
    return figure


def _ticks(counts: np.ndarray, spacing: int) -> list[int]:
    """Select classes to label, most errors first, at least `spacing` classes apart."""
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    chosen: list[int] = []
    for number in np.argsort(-errors, kind="stable").tolist():
        if all(abs(number - other) >= spacing for other in chosen):
            chosen.append(number)
    return sorted(chosen)


def confusion(title: str, counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, colored by the share of the label's images.

    Diagonal and off-diagonal cells have separate color scales. Cells show counts for up to
    MAX_COUNTS classes. If there are too many classes for all axis labels to fit, about 100, the
    classes with the most errors are labeled.

    Args:
        title: Title of the figure.
        counts: Rows are labels, columns predicted classes, shape (classes, classes).
        names: Names of the classes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    correct = np.eye(len(names), dtype=bool)
    few = len(names) <= MAX_COUNTS
    side = max(2.6 + 0.56 * min(len(names), MAX_COUNTS), 5.5)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    # On a shared scale all errors would be white: they are a few thousandths of the diagonal.
    most = max(shares[~correct].max(initial=0), 1e-9)
    axes.imshow(
        np.where(correct, np.nan, shares),
        cmap=LinearSegmentedColormap.from_list("", ["white", ORANGE]),
        vmax=most,
    )
    axes.imshow(
        np.where(correct, shares, np.nan),
        cmap=LinearSegmentedColormap.from_list("", ["white", BLUE]),
        vmin=0,
        vmax=1,
    )
    if few:
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > (0.5 if row == column else 0.6 * most)
            color = "white" if dark and count else INK if count else GRAY
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=9)
    pitch = 72 * 0.56 * MAX_COUNTS / len(names)  # points per class
    size = 10 if few else min(max(pitch / 1.2, 7), 10)
    ticks = _ticks(counts, spacing=math.ceil(1.15 * size / pitch))
    labels = [_short(names[tick], 24) for tick in ticks]
    axes.set_xticks(ticks, labels, fontsize=size, parse_math=False)
    widest = max(map(_width, names))
    if few and widest > 6:
        axes.tick_params("x", labelrotation=40)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    elif not few and widest > 1:
        axes.tick_params("x", labelrotation=90)
    axes.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    note = (
        "prediction\n\nblue: correct    orange: misclassified\n"
        "shade: fraction of the label's images"
    )
    if len(ticks) < len(names):
        note += (
            f"\n{len(ticks)} of {len(names)} classes are labeled, those with the most errors first"
        )
    axes.set_xlabel(note)
    axes.set_ylabel("label")
    _set_axes_title(axes, title)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def classes(title: str, table: pd.DataFrame) -> Figure:
    """Draw recall with its confidence interval, precision and F1 score, one line per class.

    Args:
        title: Title of the figure.
        table: Columns class, recall, recall_low, recall_high, precision, f1, in [0, 1]; a row per
            class. NaN is not drawn. With more than MAX_ROWS classes, those with the lowest recall
            are drawn.
    """
    if len(table) > MAX_ROWS:
        title += f" ({MAX_ROWS} of {len(table)} with the lowest recall)"
        table = table.sort_values("recall", kind="stable").head(MAX_ROWS)
    figure = Figure((8, 1.5 + min(0.36 * len(table), 16)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(table))
    scores = table[["recall", "precision", "f1"]]
    axes.hlines(rows, scores.min(axis=1), scores.max(axis=1), color=GRAY, linewidth=2, zorder=1)
    axes.hlines(
        rows,
        table["recall_low"],
        table["recall_high"],
        color=BLUE,
        linewidth=9,
        alpha=0.18,
        label="95% confidence interval of recall",
    )
    axes.scatter(table["recall"], rows, color=BLUE, s=55, label="recall", zorder=3)
    axes.scatter(
        table["precision"],
        rows,
        color="none",
        edgecolor=ORANGE,
        linewidth=2,
        s=70,
        label="precision",
        zorder=3,
    )
    axes.scatter(table["f1"], rows, color=INK, s=120, marker="|", label="F1", zorder=2)
    axes.set_yticks(rows, [_short(name, 24) for name in table["class"]], parse_math=False)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(right=min(axes.get_xlim()[1], 1.002))
    axes.set_xlabel("recall, precision and F1 on the test set")
    _set_axes_title(axes, title)
    figure.legend(loc="outside lower center", ncols=4)
    axes.grid(axis="y", visible=False)
    return figure


def calibration(title: str, table: pd.DataFrame) -> Figure:
    """Draw a reliability diagram and a histogram of the confidences.

    Args:
        title: Title of the figure.
        table: As returned by `calibration.reliability`.
    """
    figure = Figure((9, 4.2), layout="constrained")
    _set_title(figure, title)
    reliability, histogram = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color=GRAY, linestyle="--", label="perfect calibration")
    around = (table["accuracy"] - table["accuracy_low"], table["accuracy_high"] - table["accuracy"])
    reliability.errorbar(
        table["confidence"],
        table["accuracy"],
        np.clip(around, 0, None),
        color=BLUE,
        marker="o",
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        label="accuracy with 95% confidence interval",
    )
    reliability.set(
        xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="mean confidence", ylabel="accuracy"
    )
    figure.legend(loc="outside lower left", ncols=2)
    histogram.bar(
        table["low"],
        table["images"],
        width=table["high"] - table["low"],
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    histogram.set_yscale("log")  # most images are in the last bin
    # Plain numbers; powers of ten take a tenth of the stage's time to typeset.
    histogram.yaxis.set_major_formatter("{x:,.0f}")
    histogram.yaxis.set_minor_formatter(LogFormatter())
    histogram.set(xlim=(0, 1.02), xlabel="confidence", ylabel="test images")
    return figure


def pairs(title: str, confused: Sequence[tuple[str, str, int]]) -> Figure:
    """Draw a bar chart of the most confused pairs of classes.

    Args:
        title: Title of the figure.
        confused: Label, predicted class and number of images of each pair, most images first.
    """
    figure = Figure((8, 1.2 + 0.36 * max(len(confused), 1)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(confused))
    bars = axes.barh(rows, [count for _, _, count in confused], color=ORANGE, height=0.62)
    axes.bar_label(bars, padding=4)
    axes.set_yticks(
        rows,
        [f"{_short(label)} predicted as {_short(guess)}" for label, guess, _ in confused],
        parse_math=False,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not confused:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("test images")
    _set_axes_title(axes, title)
    axes.grid(axis="y", visible=False)
    return figure
