"""Time against node-hours to the target, with the front of those that nobody beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hansa.report.comparison import Comparison, Result, ScenarioResult
from hansa.report.figures.comparison.dress import (
    WIDTH,
    Look,
    Looks,
    height,
    legend,
    log_axis,
    panels,
)
from hansa.report.figures.drawing import FAINT, time_unit

Point = tuple[float, float]


def pareto_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw a panel a scenario; None if no run reached the target."""
    places = [one for one in found.scenarios if _points(one)]
    if not places:
        return None
    names = [one.name for one in places]
    alone = len(places) == 1
    size = (WIDTH * 0.65, 3.0) if alone else (WIDTH, 0.5 + height(names, 1.95))
    figure = Figure(figsize=size)
    times = [time for place in places for _, (time, _) in _points(place)]
    unit = time_unit(max(times))
    for axes, place in zip(panels(figure, names), places, strict=True):
        points = [
            (looks[one.strategy, one.mode], (time / unit.seconds, hours))
            for one, (time, hours) in _points(place)
        ]
        _draw(axes, points)
        if alone:
            _name_points(axes, points)
    figure.supxlabel(f"{unit.name} to the target", fontsize=8.5)
    figure.supylabel("node-hours to the target", fontsize=8.5)
    if not alone:
        legend(figure, found, looks, lines=False)
    return figure


def _points(place: ScenarioResult) -> list[tuple[Result, Point]]:
    return [
        (one, (time, hours))
        for one in place.results
        if (time := one.time_to_target_s.median)
        and (hours := one.node_hours_to_target.median)
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both, by time."""
    found: list[Point] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def _draw(axes: Axes, points: Sequence[tuple[Look, Point]]) -> None:
    _axis(axes, "x", [time for _, (time, _) in points])
    _axis(axes, "y", [hours for _, (_, hours) in points])
    best = front([point for _, point in points])
    top, right = axes.get_ylim()[1], axes.get_xlim()[1]
    steps = [(best[0][0], top), *best, (right, best[-1][1])]
    axes.step(
        [x for x, _ in steps], [y for _, y in steps], where="post", color=FAINT,
        linewidth=0.9, zorder=1,
    )  # fmt: skip
    for look, (time, hours) in points:
        axes.plot(
            [time], [hours], marker=look.marker, markersize=5.5, color=look.colour,
            markerfacecolor=look.face, markeredgewidth=1.2, zorder=3,
        )  # fmt: skip
    axes.tick_params(length=2)


def _name_points(axes: Axes, points: Sequence[tuple[Look, Point]]) -> None:
    """Write names beside the points, on the side where there is room."""
    middle = math.prod(axes.get_xlim()) ** 0.5
    for look, (time, hours) in points:
        left = time > middle
        axes.annotate(
            look.label, (time, hours), xytext=(-6 if left else 6, 5),
            textcoords="offset points", ha="right" if left else "left",
            color=look.colour, fontweight="bold",
        )  # fmt: skip


def _axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Show at least a factor of two, so that small differences look small."""
    low, high = min(values), max(values)
    middle = (low * high) ** 0.5
    log_axis(axes, which, [min(low, middle / 2**0.5), max(high, middle * 2**0.5)])
