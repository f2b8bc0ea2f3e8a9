"""Colours, axes and files: what the pictures of a report have in common.

Needs matplotlib (extra `report`). Figures are drawn without pyplot, so nothing
global is touched and no display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, PAPER = "#1b2330", "#8b93a1", "#ffffff"
BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
RED, PINK, SKY, BROWN = "#d55e00", "#cc79a7", "#56b4e9", "#8c6d46"
PALE = "#c9d3de"
# Okabe and Ito's palette, which the colour-blind can tell apart.
PALETTE = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONGEST_LABEL = 26
CROWD = 40  # more versions than this are drawn without markers

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#b8bec8",
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": PAPER,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": "#e7eaef",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",  # looks the same on every machine
    "svg.hashsalt": "hansa",  # the same data give the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a name may have a dollar sign
    "xtick.color": "#5b6472",
    "ytick.color": "#5b6472",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One finished picture; `name` is its file's, `caption` says how to read it."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeUnit:
    """A unit that suits the length of a run."""

    name: str
    seconds: float


def style() -> AbstractContextManager[None]:
    """Return a context in which figures look like one family."""
    return mpl.rc_context(_STYLE)


def render(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """Return the figure as PNG (twice the size of the screen's) and SVG."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200, metadata={"Software": "hansa"})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "hansa"})
    return Picture(
        name=name,
        title=title,
        caption=caption,
        png=png.getvalue(),
        svg=svg.getvalue(),
    )


def time_unit(seconds: float) -> TimeUnit:
    """Return the unit in which a time axis of that length is easy to read."""
    if seconds < 180:
        return TimeUnit(name="seconds", seconds=1.0)
    if seconds < 3 * 3600:
        return TimeUnit(name="minutes", seconds=60.0)
    if seconds < 72 * 3600:
        return TimeUnit(name="hours", seconds=3600.0)
    return TimeUnit(name="days", seconds=86400.0)


def shorten(name: str, longest: int = LONGEST_LABEL) -> str:
    """Return a label with its middle left out when it is too long."""
    if len(name) <= longest:
        return name
    tail = longest // 3
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker by name; no two have both in common (to 49)."""
    n = len(PALETTE)
    return {
        name: (PALETTE[i % n], MARKERS[(i + i // n) % n])
        for i, name in enumerate(names)
    }


def plain_axis(axes: Axes, *, left: bool = False) -> None:
    """Take away what a bar chart doesn't need: ticks, and the left line too."""
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(left)
    axes.spines["bottom"].set_visible(False)
