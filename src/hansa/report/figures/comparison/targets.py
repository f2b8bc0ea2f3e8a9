"""Time and node-hours to the target: dots with intervals, one row a scenario."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hansa.report.comparison import Comparison, Estimate, Result
from hansa.report.figures.comparison.dress import (
    WIDTH,
    Look,
    Looks,
    legend,
    log_axis,
    quiet_grid,
)
from hansa.report.figures.drawing import shorten, time_unit

Measure = Callable[[Result], Estimate]
ROW = 0.115
"""Inches from one dot to the next within a row."""


def time_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw the time to target; None if no run reached it."""
    values = _drawn(found, lambda one: one.time_to_target_s)
    if not values:
        return None
    unit = time_unit(max(values))
    return _figure(
        found, looks, lambda one: one.time_to_target_s, unit.seconds,
        f"{unit.name} to the target loss {found.target:g}",
    )  # fmt: skip


def node_hours_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw the node-hours used until the target; None if no run reached it."""
    if not _drawn(found, lambda one: one.node_hours_to_target):
        return None
    return _figure(
        found, looks, lambda one: one.node_hours_to_target, 1.0,
        f"node-hours to the target loss {found.target:g}",
    )  # fmt: skip


def _drawn(found: Comparison, measure: Measure) -> list[float]:
    """Return all numbers that a logarithmic axis must hold."""
    each = [measure(one) for place in found.scenarios for one in place.results]
    numbers = [x for one in each for x in (one.median, one.low, one.high)]
    return [x for x in numbers if x is not None and x > 0 and math.isfinite(x)]


def _figure(
    found: Comparison, looks: Looks, measure: Measure, unit: float, label: str
) -> Figure:
    rows, lanes = len(found.scenarios), found.strategies()
    figure = Figure(figsize=(WIDTH, 1.0 + rows * max(0.3, ROW * (len(lanes) + 1.2))))
    axes = figure.subplots()
    log_axis(axes, "x", [x / unit for x in _drawn(found, measure)])
    for row, place in enumerate(found.scenarios):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", zorder=0)
        for one in place.results:
            at = row + _lane(lanes, one.strategy) + _aside(found, one.mode)
            _dot(axes, at, measure(one), unit, looks[one.strategy, one.mode])
    if rows == 1:
        axes.set_yticks([_lane(lanes, name) for name in lanes], lanes)
    else:
        axes.set_yticks(range(rows), [shorten(one.name) for one in found.scenarios])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlabel(label)
    quiet_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if rows > 1 or len(found.modes()) > 1:
        legend(figure, found, looks, lines=False)
    return figure


def _lane(lanes: Sequence[str], strategy: str) -> float:
    """Return where in its row a strategy is drawn."""
    return ((lanes.index(strategy) + 0.5) / len(lanes) - 0.5) * 0.8


def _aside(found: Comparison, mode: str) -> float:
    """Return how far modes lie apart in their lane, so that none hides another."""
    modes = found.modes()
    return (modes.index(mode) - (len(modes) - 1) / 2) * 0.3 / len(found.strategies())


def _dot(axes: Axes, at: float, found: Estimate, unit: float, look: Look) -> None:
    """Draw a median and its interval; beyond the right edge what is not reached."""
    edge = axes.get_xlim()[1]
    if found.median is None:
        axes.annotate(
            "▷" if look.published else "▶", (1.0, at),
            xycoords=("axes fraction", "data"), xytext=(10 if look.published else 3, 0),
            textcoords="offset points", va="center", color=look.colour, fontsize=6.5,
            annotation_clip=False,
        )  # fmt: skip
        return
    if found.low is not None:
        high = edge if found.high is None else found.high / unit
        ends = [found.low / unit, high]
        axes.plot(ends, [at, at], color=look.colour, linewidth=1.0, zorder=2)
    axes.plot(
        [found.median / unit], [at], marker=look.marker, markersize=4.4, zorder=3,
        color=look.colour, markerfacecolor=look.face, markeredgewidth=1.0,
    )  # fmt: skip
