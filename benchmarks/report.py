"""What a part of the benchmark found, as a table, as JSON, and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.lib.results.figures import BLUE, GRAY, INK, ORANGE


@dataclass(frozen=True)
class Check:
    """A figure to reach, and the one that was measured.

    Args:
        what: What is compared.
        measured: The figure.
        target: The limit.
        at_least: Whether the limit is the least or the most.
        unit: What stands behind the figures.
    """

    what: str
    measured: float
    target: float
    at_least: bool = True
    unit: str = " x"

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def __str__(self) -> str:
        """One line: the verdict, what, the figure, the limit."""
        limit = f"{'at least' if self.at_least else 'at most'} {self.target:g}{self.unit}"
        return f"{'holds ' if self.holds else 'MISSED'}  {self.what}: {self.measured:.4g}{self.unit}, {limit}"


@dataclass(frozen=True)
class Part:
    """One part's results.

    Args:
        title: Above its table; above its bars, up to the first colon.
        header: Names of the columns.
        rows: Cells, a row per contender.
        checks: Its targets.
        bars: Name and median in `unit` of each bar in the picture; ours first.
        unit: Of the bars.
        results: Everything measured, for results.json.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    checks: Sequence[Check]
    bars: Sequence[tuple[str, float]]
    unit: str
    results: Mapping[str, Any] = field(default_factory=dict)


def table(part: Part) -> str:
    """A part as text: its title, its columns in line, its targets."""
    widths = [max(map(len, column)) for column in zip(part.header, *part.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = cells
        return "  ".join(
            [
                name.ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True)),
            ]
        )

    return "\n".join([part.title, line(part.header), *map(line, part.rows), *map(str, part.checks)])


def content(part: Part) -> dict[str, Any]:
    """A part's results, to be written as JSON."""
    return {
        "title": part.title,
        "checks": [
            {
                "what": check.what,
                "measured": check.measured,
                "target": check.target,
                "holds": check.holds,
            }
            for check in part.checks
        ],
        "bars": dict(part.bars),
        "unit": part.unit,
        "results": part.results,
    }


def _bars(axes: Axes, part: Mapping[str, Any]) -> None:
    names, values = [*part["bars"]], [*part["bars"].values()]
    alone = not any(name.startswith("ours") for name in names)
    colors = [
        BLUE
        if alone or name.startswith("ours")
        else ORANGE
        if name.startswith("tutorial")
        else GRAY
        for name in names
    ]
    bars = axes.barh(range(len(names)), values, color=colors, height=0.64)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_title(part["title"].partition(":")[0])
    axes.set_xlabel(part["unit"])
    axes.grid(axis="y", visible=False)


def picture(machine: Mapping[str, str], parts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Bars of every part, as from `content`, one under the other; ours blue, the tutorial orange, others gray."""
    heights = [1.1 + 0.32 * len(part["bars"]) for part in parts.values()]
    figure = Figure((9, sum(heights) + 0.5), layout="constrained")
    all_axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, part in zip(all_axes, parts.values(), strict=True):
        _bars(axes, part)
    figure.supxlabel(
        f"{machine['CPU']}, cores {machine['cores']} ({machine['vectors']}); medians; lower is better",
        fontsize=9.5,
        color=INK,
    )
    return figure
