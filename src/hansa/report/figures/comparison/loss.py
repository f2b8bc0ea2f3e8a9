"""Test loss against wall clock: small multiples by scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hansa.report.comparison import Comparison, Curve, Result, ScenarioResult
from hansa.report.figures.comparison.dress import (
    COLUMNS,
    WIDTH,
    Looks,
    height,
    legend,
    panels,
    quiet_grid,
    spread,
)
from hansa.report.figures.drawing import FAINT, time_unit
from hansa.report.figures.loss import loss_scale

FEW = 5
"""Lines of a panel that can carry their own names."""

BEYOND = 1.6
"""What is shown, over the time in which the slowest one reaches the target."""


def loss_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw median lines with quartile bands; None if nothing was measured.

    A panel is a mode in a scenario: one mode may be many times as fast as another.
    """
    scenarios = [one for one in found.scenarios if any(r.curve for r in one.results)]
    if not scenarios:
        return None
    alone = len(scenarios) == 1
    places = [part for one in scenarios for part in _by_mode(one)]
    wide = COLUMNS if len(found.modes()) == 1 else len(found.modes())
    names = [one.name for one in places]
    tall = 2.9 if alone else height(names, 1.75, wide=wide)
    figure = Figure(figsize=(WIDTH, 0.5 + tall))
    shown = panels(figure, names, wide=wide, level=alone)
    values: list[float] = [] if found.target is None else [found.target]
    for axes, place in zip(shown, places, strict=True):
        values = _draw(axes, place, looks, found.target, values if alone else [])
    direct = alone and len(found.strategies()) <= FEW
    for axes, place in zip(shown if direct else (), places, strict=False):
        _name_lines(axes, place, looks)
    figure.supylabel("test loss", fontsize=8.5)
    if not direct:
        legend(figure, found, looks, lines=True)
    return figure


def _by_mode(place: ScenarioResult) -> list[ScenarioResult]:
    """Return a scenario as one for each mode, which is then its name."""
    modes = dict.fromkeys(one.mode for one in place.results if one.curve)
    if len(modes) == 1:
        return [place]
    return [
        replace(
            place,
            name=f"{place.name}, {mode}",
            results=tuple(one for one in place.results if one.mode == mode),
        )
        for mode in modes
    ]


def window(place: ScenarioResult) -> float:
    """Return how much of a scenario to show, in seconds: until all is decided."""
    times = [one.time_to_target_s.median for one in place.results]
    reached = [time for time in times if time is not None]
    if not any(reached) or len(reached) < len(times):
        return place.horizon_s
    return min(place.horizon_s, BEYOND * max(reached))


def _curves(place: ScenarioResult) -> list[tuple[Result, Curve]]:
    return [(one, one.curve) for one in place.results if one.curve is not None]


def _until(end: float, curve: Curve, losses: Sequence[float]) -> list[float]:
    """Return those of a curve's losses that are shown; the first one always is."""
    pairs = zip(curve.times, losses, strict=True)
    return [loss for time, loss in pairs if time <= end or time == curve.times[0]]


def _draw(
    axes: Axes,
    place: ScenarioResult,
    looks: Looks,
    target: float | None,
    drawn: Sequence[float],
) -> list[float]:
    """Draw a panel; return all losses on its vertical axis, those drawn before too."""
    end = window(place)
    unit = time_unit(end)
    values = [*drawn] if target is None else [*drawn, target]
    for one, curve in _curves(place):
        look = looks[one.strategy, one.mode]
        times = [at / unit.seconds for at in curve.times]
        axes.fill_between(
            times, curve.low, curve.high, color=look.colour, alpha=0.13, linewidth=0
        )
        axes.plot(times, curve.median, look.line, color=look.colour, linewidth=1.4)
        if curve.times[-1] < end:  # the runs were over
            axes.plot(times[-1], curve.median[-1], "o", color=look.colour, markersize=3)
        values += [*_until(end, curve, curve.low), *_until(end, curve, curve.high)]
    if target is not None:
        axes.axhline(target, color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            f"target {target:g}", (1.0, target), xycoords=("axes fraction", "data"),
            xytext=(-1, 1.5), textcoords="offset points", ha="right", fontsize=6.5,
            color="#5b6472",
        )  # fmt: skip
    axes.set_xlim(0, end / unit.seconds)
    axes.set_xlabel(unit.name)
    quiet_grid(axes, "y")
    loss_scale(axes, values)
    return values


def _name_lines(axes: Axes, place: ScenarioResult, looks: Looks) -> None:
    """Write the strategies' names at the ends of their lines."""
    low, high = axes.get_ylim()
    scale = axes.yaxis.get_transform()
    bottom, top = scale.transform([low, high])
    last = [_until(window(place), one, one.median)[-1] for _, one in _curves(place)]
    ends = [(float(y) - bottom) / (top - bottom) for y in scale.transform(last)]
    rows = zip(_curves(place), last, spread(ends, 0.055), strict=True)
    for (one, _), loss, at in rows:
        look = looks[one.strategy, one.mode]
        axes.annotate(
            f"{look.strategy} {loss:.3g}", (1.0, at), xytext=(4, 0),
            xycoords="axes fraction", textcoords="offset points", va="center",
            color=look.colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
