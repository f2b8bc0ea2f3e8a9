"""What the pictures of a comparison have in common: sizes, colours, labels, files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from hansa.report.comparison import Comparison
from hansa.report.figures.drawing import (
    FAINT,
    MARKERS,
    PALETTE,
    PAPER,
    Picture,
    render,
    style,
)

WIDTH = 7.1
"""Inches: two columns of a paper."""

COLUMNS = 3
"""Most panels beside each other."""

WIDE = 5
"""The same for small panels."""

PUBLISHED = "published"

_PAPER: dict[Any, Any] = {
    "axes.labelsize": 8.5,
    "axes.titlepad": 5.0,
    "axes.titlesize": 9.0,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 200,  # that of the PNG: letters have other widths at another one
    "font.size": 8.0,
    "legend.fontsize": 8.0,
    "pdf.fonttype": 42,  # letters stay letters, as publishers ask
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


@dataclass(frozen=True, slots=True)
class Plate:
    """One finished picture, and the same as PDF."""

    picture: Picture
    pdf: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """How a strategy in a mode is drawn: open and dashed as published, else full."""

    strategy: str
    mode: str
    colour: str
    marker: str
    alone: bool

    @property
    def label(self) -> str:
        """Its name, with the mode where there are several."""
        return self.strategy if self.alone else f"{self.strategy}, {self.mode}"

    @property
    def published(self) -> bool:
        """Whether it must be told from another mode of the same strategy."""
        return self.mode == PUBLISHED and not self.alone

    @property
    def line(self) -> Literal["--", "-"]:
        """Style of its lines."""
        return "--" if self.published else "-"

    @property
    def face(self) -> str:
        """Colour within its markers."""
        return PAPER if self.published else self.colour


Key = tuple[str, str]
"""Strategy and mode."""

Looks = dict[Key, Look]


def looks_of(found: Comparison) -> Looks:
    """Return the look of each strategy and mode, in the order of the study."""
    modes = found.modes()
    return {
        (name, mode): Look(
            strategy=name,
            mode=mode,
            colour=PALETTE[k % len(PALETTE)],
            marker=MARKERS[k % len(MARKERS)],
            alone=len(modes) == 1,
        )
        for k, name in enumerate(found.strategies())
        for mode in modes
    }


@contextmanager
def paper_style() -> Iterator[None]:
    """Let figures that are drawn within suit a paper."""
    with style(), mpl.rc_context(_PAPER):
        yield


def plate(figure: Figure, name: str, title: str, caption: str) -> Plate:
    """Return the figure as PNG, SVG and PDF; the same data give the same bytes."""
    figure.draw_without_rendering()
    figure.draw_without_rendering()  # the second time texts have their true sizes
    figure.set_layout_engine("none")  # to place everything once is enough
    pdf = io.BytesIO()
    figure.savefig(
        pdf, format="pdf", metadata={"CreationDate": None, "Creator": "hansa"}
    )
    return Plate(render(figure, name, title, caption), pdf.getvalue())


def panels(
    figure: Figure, names: Sequence[str], *, wide: int = COLUMNS, level: bool = False
) -> list[Axes]:
    """Return a titled panel for each name; what is left of the grid stays white.

    Args:
        figure: Where.
        names: The titles.
        wide: Most panels beside each other.
        level: Whether all have the same vertical axis.
    """
    across = min(wide, len(names))
    down = math.ceil(len(names) / across)
    grid = figure.subplots(down, across, squeeze=False, sharey=level)
    flat: list[Axes] = list(grid.flat)
    for axes, name in zip(flat, names, strict=False):
        axes.set_title(name)
    for axes in flat[len(names) :]:
        axes.set_axis_off()
    return flat[: len(names)]


def height(names: Sequence[str], each: float, *, wide: int = COLUMNS) -> float:
    """Return the inches that so many panels need, one above the other."""
    return each * math.ceil(len(names) / min(wide, len(names)))


def matrix(figure: Figure, found: Comparison, looks: Looks) -> dict[Key, Axes]:
    """Return a panel for each strategy and mode: a column each, a row each.

    With one mode only, rows are filled one after the other.
    """
    modes = found.modes()
    if len(modes) == 1:
        names = [look.label for look in looks.values()]
        return dict(zip(looks, panels(figure, names, wide=WIDE), strict=True))
    grid = figure.subplots(len(modes), len(found.strategies()), squeeze=False)
    drawn = {}
    for row, mode in enumerate(modes):
        for column, name in enumerate(found.strategies()):
            axes = drawn[name, mode] = grid[row][column]
            axes.set_title(name if row == 0 else "")
            if column == 0:
                axes.set_ylabel(mode)
    return drawn


def matrix_height(found: Comparison, looks: Looks, each: float) -> float:
    """Return the inches that the panels of `matrix` need."""
    modes = found.modes()
    if len(modes) > 1:
        return each * len(modes)
    return height(list(map(str, looks)), each, wide=WIDE)


def legend(figure: Figure, found: Comparison, looks: Looks, *, lines: bool) -> None:
    """Put a legend above the panels: colours for strategies, forms for modes."""
    modes = found.modes()
    late = [look for look in looks.values() if look.mode == modes[-1]]
    handles = [
        Line2D(
            [], [], color=look.colour, linestyle="-" if lines else "",
            marker="" if lines else look.marker, markersize=5, linewidth=1.6,
            label=look.strategy,
        )
        for look in late
    ]  # fmt: skip
    if len(modes) > 1:
        first = next(iter(looks.values()))
        for look in (one for one in looks.values() if one.strategy == first.strategy):
            handles.append(
                Line2D(
                    [], [], color=FAINT, linestyle=look.line if lines else "",
                    marker="" if lines else "o", markersize=5, linewidth=1.6,
                    markerfacecolor=PAPER if look.published else FAINT, label=look.mode,
                )
            )  # fmt: skip
    columns = min(len(handles), 8)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, handlelength=1.8,
        columnspacing=1.1, handletextpad=0.6,
    )  # fmt: skip


def log_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with a few round numbers as its ticks.

    Args:
        axes: The panel.
        which: ``x`` or ``y``.
        values: What the axis must hold; all above 0.
    """
    low, high = min(values), max(values)
    pad = (high / low) ** 0.07 if high > low else 1.5
    low, high = low / pad, high * pad
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(round_numbers(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


SERIES = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))


def round_numbers(low: float, high: float) -> list[float]:
    """Return four or five round numbers within bounds, or a few more over decades."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for series in SERIES:
        each = [x * 10.0**n for n in tens for x in series]
        found = [number for number in each if low <= number <= high]
        if len(found) >= 4:
            return found
    even = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(number) for number in even if low <= number <= high]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return places moved apart so that none is nearer than `gap` to another.

    Those that are too near to each other are spaced around their mean, in order.
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    groups: list[list[int]] = []
    for k in order:
        groups.append([k])
        while len(groups) > 1 and _top(groups[-2], places, gap) + gap > _bottom(
            groups[-1], places, gap
        ):
            last = groups.pop()
            groups[-1] += last
    found = list(places)
    for group in groups:
        for rank, k in enumerate(group):
            found[k] = _bottom(group, places, gap) + rank * gap
    return found


def _bottom(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    mean = sum(places[k] for k in group) / len(group)
    return mean - (len(group) - 1) * gap / 2


def _top(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _bottom(group, places, gap) + (len(group) - 1) * gap


def quiet_grid(axes: Axes, which: str) -> None:
    """Draw thin lines behind the data, along one axis."""
    axes.grid(visible=True, axis="x" if which == "x" else "y")
    axes.tick_params(length=2, color="#b8bec8")
