"""Results of a part of the benchmark as a table, JSON, and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.runner import Interval
from stages.lib.results.figures import BLUE, GRAY, INK, ORANGE


@dataclass(frozen=True)
class Check:
    """A measurement and its target.

    Attributes:
        what: Description of the comparison.
        measured: The measurement with its interval, or an exact number.
        target: The limit.
        at_least: Whether the limit is a minimum; otherwise it is a maximum.
        unit: Unit of the numbers.
    """

    what: str
    measured: Interval | float
    target: float
    at_least: bool = True
    unit: str = " x"

    @property
    def interval(self) -> Interval:
        """The measurement as an interval, of zero width for an exact number."""
        if isinstance(self.measured, Interval):
            return self.measured
        return Interval(self.measured, self.measured, self.measured)

    @property
    def verdict(self) -> str:
        """`holds` or `missed` if the whole interval is on one side, otherwise `not shown`."""
        low, high = self.interval.low, self.interval.high
        if low >= self.target if self.at_least else high <= self.target:
            return "holds"
        if high < self.target if self.at_least else low > self.target:
            return "missed"
        return "not shown"

    def __str__(self) -> str:
        limit = f"{'at least' if self.at_least else 'at most'} {self.target:g}{self.unit}"
        found = self.interval
        shown = f"{found.value:.4g}{self.unit}"
        if found.low < found.high:
            shown += f" ({found.low:.4g} to {found.high:.4g})"
        return f"{self.verdict:9}  {self.what}: {shown}, {limit}"


@dataclass(frozen=True)
class Part:
    """Results of one part of the benchmark.

    Attributes:
        title: Title of the table and, up to the first colon, of the bars.
        header: Names of the columns.
        rows: Cells of the table, a row per command.
        checks: Comparisons with targets.
        bars: Name and median in `unit` of each bar in the figure; ours first.
        unit: Unit of the bars.
        results: All measurements, for results.json.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    checks: Sequence[Check]
    bars: Sequence[tuple[str, float]]
    unit: str
    results: Mapping[str, Any] = field(default_factory=dict)


def table(part: Part) -> str:
    """Format a part as text: title, aligned columns, and checks."""
    widths = [max(map(len, column)) for column in zip(part.header, *part.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = cells
        aligned = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        return "  ".join([name.ljust(widths[0]), *aligned])

    return "\n".join([part.title, line(part.header), *map(line, part.rows), *map(str, part.checks)])


def content(part: Part, commit: str, rounds: int) -> dict[str, Any]:
    """Return the results of a part for JSON, with the measured commit."""
    return {
        "title": part.title,
        "commit": commit,
        "rounds": rounds,
        "checks": [
            {
                "what": check.what,
                **{key: _finite(value) for key, value in vars(check.interval).items()},
                "target": check.target,
                "verdict": check.verdict,
            }
            for check in part.checks
        ],
        "bars": dict(part.bars),
        "unit": part.unit,
        "results": part.results,
    }


def _finite(value: float) -> float | None:
    """Replace infinity, which JSON lacks, by None."""
    return value if isfinite(value) else None


def _bars(axes: Axes, part: Mapping[str, Any]) -> None:
    names, values = [*part["bars"]], [*part["bars"].values()]
    alone = not any(name.startswith("ours") for name in names)
    own = {name: ORANGE if name.startswith("transcription") else GRAY for name in names}
    colors = [BLUE if alone or name.startswith("ours") else own[name] for name in names]
    bars = axes.barh(range(len(names)), values, color=colors, height=0.64)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_title(part["title"].partition(":")[0])
    axes.set_xlabel(part["unit"])
    axes.grid(axis="y", visible=False)


def results_figure(machine: Mapping[str, str], parts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw bars of each part from `content`: ours blue, the transcription orange, others gray."""
    heights = [1.1 + 0.32 * len(part["bars"]) for part in parts.values()]
    figure = Figure((9, sum(heights) + 0.5), layout="constrained")
    all_axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, part in zip(all_axes, parts.values(), strict=True):
        _bars(axes, part)
    figure.supxlabel(
        f"{machine['CPU']}, cores {machine['cores']} ({machine['vectors']}); "
        "medians; lower is better, except for accuracy",
        fontsize=9.5,
        color=INK,
    )
    return figure
