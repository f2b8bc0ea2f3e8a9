"""Who took part, and with how old an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hansa.report.comparison import Comparison, Result
from hansa.report.figures.comparison.dress import (
    WIDTH,
    Look,
    Looks,
    matrix,
    matrix_height,
    quiet_grid,
)
from hansa.report.figures.drawing import INK, PALE, plain_axis, shorten

OLDEST = 8
"""Older updates than this are put together."""


def staleness_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw how old the applied updates were, all scenarios together."""
    sums = {key: _staleness(found, key) for key in looks}
    if not any(sum(ages.values()) for ages in sums.values()):
        return None
    figure = Figure(figsize=(WIDTH, 0.35 + matrix_height(found, looks, 1.3)))
    last = min(OLDEST, max(age for ages in sums.values() for age in ages))
    for key, axes in matrix(figure, found, looks).items():
        if sum(sums[key].values()):
            _histogram(axes, sums[key], last, looks[key])
        else:
            axes.set_axis_off()
    figure.supxlabel("staleness of an applied update, in versions", fontsize=8.5)
    figure.supylabel("share of updates", fontsize=8.5)
    return figure


def _staleness(found: Comparison, key: tuple[str, str]) -> Counter[int]:
    total: Counter[int] = Counter()
    for one in _results(found, key):
        total.update(one.staleness)
    return total


def _results(found: Comparison, key: tuple[str, str]) -> list[Result]:
    return [
        one
        for place in found.scenarios
        for one in place.results
        if (one.strategy, one.mode) == key
    ]


def _histogram(axes: Axes, ages: Mapping[int, int], last: int, look: Look) -> None:
    total = sum(ages.values())
    shares = [sum(n for age, n in ages.items() if min(age, last) == k) / total
              for k in range(last + 1)]  # fmt: skip
    axes.bar(
        range(last + 1), shares, width=0.78, color=look.face, edgecolor=look.colour,
        linewidth=1.0,
    )  # fmt: skip
    mean = sum(age * n for age, n in ages.items()) / total
    axes.axvline(min(mean, last), color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.annotate(
        f"mean {mean:.2g}", (1.0, 0.96), xycoords="axes fraction", ha="right", va="top",
        fontsize=7,
    )  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, max(last, 1) + 0.6)
    ticks = [k for k in range(last + 1) if last < 5 or k % 2 == 0]
    axes.set_xticks(ticks, [f"{k}+" if k == OLDEST else str(k) for k in ticks])
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    quiet_grid(axes, "y")


def participation_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw the mean number of updates that each facility brought in."""
    if not found.scenarios:
        return None
    one_row = 0.5 + 0.16 * len(found.facilities)
    figure = Figure(figsize=(WIDTH, 0.45 + matrix_height(found, looks, one_row)))
    drawn = matrix(figure, found, looks)
    most = max(
        one.participation[name] + one.late[name]
        for place in found.scenarios
        for one in place.results
        for name in found.facilities
    )
    labels = [shorten(name, 14) for name in found.facilities]
    for key, axes in drawn.items():
        results = _results(found, key)
        if not results:
            axes.set_axis_off()
            continue
        _bars(axes, found.facilities, results, looks[key])
        axes.set_xlim(0, (most or 1) * 1.35)
        first = axes.get_subplotspec()
        outer = first is None or first.is_first_col()
        axes.set_yticks(range(len(labels)), labels if outer else [])
    figure.supxlabel(
        "updates of a run that went into a version (pale: that came too late)",
        fontsize=8.5,
    )
    return figure


def _bars(
    axes: Axes, facilities: Sequence[str], results: Sequence[Result], look: Look
) -> None:
    """Draw means, and from the smallest to the largest scenario a line."""
    for row, name in enumerate(facilities):
        counts = [one.participation[name] for one in results]
        applied, late = fmean(counts), fmean(one.late[name] for one in results)
        axes.barh(
            row, applied, height=0.7, color=look.face, edgecolor=look.colour,
            linewidth=1.0,
        )  # fmt: skip
        axes.barh(row, late, left=applied, height=0.7, color=PALE)
        if len(counts) > 1:
            ends = [min(counts), max(counts)]
            axes.plot(ends, [row, row], color=INK, linewidth=0.8, zorder=4)
        axes.annotate(
            f"{applied:.0f}" if applied >= 9.95 else f"{applied:.1f}",
            (max(applied + late, *counts), row), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    axes.set_ylim(len(facilities) - 0.4, -0.6)
    axes.set_xticks([])
    plain_axis(axes, left=True)
