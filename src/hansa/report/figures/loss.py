"""Test loss of the global and of all local models, by version and by time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from hansa.report.figures.drawing import (
    BLUE,
    CROWD,
    INK,
    PALETTE,
    looks,
    shorten,
    time_unit,
)
from hansa.report.model import RunSummary, finite
from hansa.report.tables import loss

Points = list[tuple[float, float]]


def loss_figure(summary: RunSummary) -> Figure | None:
    """Draw the loss against versions and, if there are several, against time."""
    world = _global_points(summary)
    local = _local_points(summary)
    if not world and not any(local.values()):
        return None
    points = len(world) + sum(map(len, local.values()))
    both = points > 1 and summary.wall_clock_s > 0
    figure = Figure(figsize=(10.5 if both else 6.5, 4.2))
    panels = figure.subplots(1, 2 if both else 1, sharey=True, squeeze=False)[0]
    for axes, by_time in zip(panels, (False, True), strict=False):
        if _is_crowd(summary):
            _draw_band(axes, summary, by_time=by_time)
        else:
            _draw_local(axes, summary, by_time=by_time)
        _draw_global(axes, summary, by_time=by_time)
        axes.margins(x=0.05, y=0.1)
        axes.grid(visible=True, axis="y")
    panels[0].set_ylabel("test loss")
    loss_scale(panels[0], _losses(world, local))
    handles = _local_handles(summary, local)
    if world:
        handles.insert(
            0, Line2D([], [], color=INK, linewidth=2.8, label="global model")
        )
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5)
    return figure


def _is_crowd(summary: RunSummary) -> bool:
    return len(summary.versions) > CROWD and len(summary.facilities) > len(PALETTE)


def _local_handles(
    summary: RunSummary, local: Mapping[str, Points]
) -> list[Line2D | Patch]:
    if _is_crowd(summary):
        number = sum(bool(points) for points in local.values())
        return [
            Line2D([], [], color=BLUE, linewidth=1.2, label="median local model"),
            Patch(color=BLUE, alpha=0.2, label=f"range of {number} local models"),
        ]
    dress = looks(tuple(summary.facilities))
    marked = len(summary.versions) <= CROWD
    return [
        Line2D(
            [], [], color=dress[name][0], marker=dress[name][1] if marked else "",
            markersize=5, linewidth=1.0, label=shorten(name),
        )
        for name, points in local.items()
        if points
    ]  # fmt: skip


def _losses(world: Points, local: Mapping[str, Points]) -> list[float]:
    return [y for points in (world, *local.values()) for _, y in points]


def _global_points(summary: RunSummary, *, by_time: bool = False) -> Points:
    return [
        (one.at_s if by_time else float(one.version), one.eval_loss or 0.0)
        for one in summary.evaluated()
    ]


def _local_points(summary: RunSummary, *, by_time: bool = False) -> dict[str, Points]:
    found: dict[str, Points] = {name: [] for name in summary.facilities}
    if by_time:
        for update in summary.updates:
            if update.eval_loss is not None and finite(update.eval_loss):
                found[update.facility].append((update.at_s, update.eval_loss))
        return found
    for version in summary.versions:
        for name, number in version.facility_eval_loss.items():
            if finite(number):
                found[name].append((float(version.version), number))
    return found


def _scale(summary: RunSummary, *, by_time: bool) -> float:
    return time_unit(summary.wall_clock_s).seconds if by_time else 1.0


def _draw_local(axes: Axes, summary: RunSummary, *, by_time: bool) -> None:
    scale = _scale(summary, by_time=by_time)
    dress = looks(tuple(summary.facilities))
    crowded = len(summary.versions) > CROWD
    for name, points in _local_points(summary, by_time=by_time).items():
        colour, marker = dress[name]
        axes.plot(
            [x / scale for x, _ in points], [y for _, y in points], color=colour,
            marker="" if crowded else marker, markersize=4.5, linewidth=0.9,
            alpha=0.6 if crowded else 0.85,
        )  # fmt: skip


def _draw_band(axes: Axes, summary: RunSummary, *, by_time: bool) -> None:
    """Draw median and range of the local models where lines would be a thicket."""
    scale = _scale(summary, by_time=by_time)
    band = [
        (one.at_s if by_time else one.version, sorted(losses))
        for one in summary.versions
        if (losses := [x for x in one.facility_eval_loss.values() if finite(x)])
    ]
    places = [x / scale for x, _ in band]
    low, high = [y[0] for _, y in band], [y[-1] for _, y in band]
    axes.fill_between(places, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(places, [median(y) for _, y in band], color=BLUE, linewidth=1.2)


def _draw_global(axes: Axes, summary: RunSummary, *, by_time: bool) -> None:
    scale = _scale(summary, by_time=by_time)
    world = [(x / scale, y) for x, y in _global_points(summary, by_time=by_time)]
    axes.plot(
        [x for x, _ in world], [y for _, y in world], color=INK, linewidth=2.8,
        marker="" if len(world) > CROWD else "o", markersize=5.5,
        solid_capstyle="round", zorder=5,
    )  # fmt: skip
    if by_time:
        axes.set_title("by wall clock")
        axes.set_xlabel(f"{time_unit(summary.wall_clock_s).name} since the start")
    else:
        axes.set_title("by version")
        axes.set_xlabel("version of the global model")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if world:
        axes.annotate(
            loss(world[-1][1]), world[-1], xytext=(6, -15), textcoords="offset points",
            ha="right", fontsize=8.5, fontweight="bold", zorder=6,
        )  # fmt: skip


def loss_scale(axes: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic axis when the losses span more than a factor of ten."""
    if min(values) <= 0 or max(values) < 10 * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
