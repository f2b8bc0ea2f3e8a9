"""Samples a second against nodes, for one facility or several: the scaling figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hansa.planner.record import ThroughputRecord
from hansa.report.figures.comparison.dress import log_axis
from hansa.report.figures.drawing import (
    FAINT,
    Picture,
    looks,
    render,
    shorten,
    style,
)
from hansa.report.throughput import names_of

PARTS: tuple[tuple[str, Literal[":", "-"]], ...] = (
    ("data", ":"),
    ("communication", "-"),
)
"""What of a step is shown, and the style of its line."""

_CAPTION = (
    "Left: samples a second over all ranks; dashed, in proportion to the nodes from "
    "the fewest on. Right: what of a step goes into data and into communication that "
    "no computing hides. Where a node count was measured several times, the line goes "
    "through the median and bars reach from the slowest to the fastest."
)


def scaling_picture(records: Sequence[ThroughputRecord]) -> Picture:
    """Return the picture of some records, each with a measurement."""
    with style():
        return render(scaling_figure(records), "throughput", "Throughput", _CAPTION)


def scaling_figure(records: Sequence[ThroughputRecord]) -> Figure:
    """Draw throughput and what of a step is lost, both over the nodes."""
    figure = Figure(figsize=(9.0, 4.2))
    speed, parts = figure.subplots(1, 2, sharex=True)
    dress = looks(names_of(records))
    for record, (colour, marker) in zip(records, dress.values(), strict=True):
        _draw_ideal(speed, record, colour)
        _draw_speed(speed, record, colour, marker)
        _draw_parts(parts, record, colour, marker)
    speed.set_title("throughput")
    speed.set_ylabel("samples/s")
    parts.set_title("share of a step")
    _axes(speed, parts, records)
    _legend(figure, records)
    return figure


def _draw_speed(axes: Axes, record: ThroughputRecord, colour: str, marker: str) -> None:
    middle = record.middle()
    speeds = [one.samples_per_s for one in middle]
    each = [
        [m.samples_per_s for m in record.measurements if m.nodes == one.nodes]
        for one in middle
    ]
    spread = [
        [mid - min(all_) for mid, all_ in zip(speeds, each, strict=True)],
        [max(all_) - mid for mid, all_ in zip(speeds, each, strict=True)],
    ]
    axes.errorbar(
        record.nodes, speeds, yerr=spread, color=colour, marker=marker, markersize=5,
        linewidth=1.6, elinewidth=0.9, capsize=2,
    )  # fmt: skip


def _draw_ideal(axes: Axes, record: ThroughputRecord, colour: str) -> None:
    first, nodes = record.middle()[0], record.nodes
    ideal = [first.samples_per_s * count / first.nodes for count in nodes]
    axes.plot(nodes, ideal, color=colour, linewidth=1.0, linestyle="--", alpha=0.6)


def _draw_parts(axes: Axes, record: ThroughputRecord, colour: str, marker: str) -> None:
    for part, line in PARTS:
        points = [
            (one.nodes, seconds / one.step_s)
            for one in record.middle()
            if (seconds := getattr(one, f"{part}_s")) is not None
        ]
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=colour, marker=marker,
            markersize=4, linewidth=1.3, linestyle=line,
        )  # fmt: skip


def _axes(speed: Axes, parts: Axes, records: Sequence[ThroughputRecord]) -> None:
    nodes = sorted({count for record in records for count in record.nodes})
    speeds = [m.samples_per_s for record in records for m in record.measurements]
    ideals = [
        one[0].samples_per_s * one[-1].nodes / one[0].nodes
        for one in (record.middle() for record in records)
    ]
    log_axis(speed, "y", [*speeds, *ideals])
    for axes in (speed, parts):
        log_axis(axes, "x", nodes)
        axes.xaxis.set_major_locator(FixedLocator(nodes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        axes.set_xlabel("nodes")
        axes.grid(visible=True, axis="y")
    parts.set_ylim(0.0, 1.0)
    parts.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))


def _legend(figure: Figure, records: Sequence[ThroughputRecord]) -> None:
    dress = looks(names_of(records))
    handles = [
        Line2D(
            [], [], color=colour, marker=marker, markersize=5, linewidth=1.6,
            label=shorten(name, 40),
        )
        for name, (colour, marker) in dress.items()
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color=FAINT, linestyle="--", linewidth=1.0, label="ideal")
    )
    handles += [
        Line2D([], [], color=FAINT, linestyle=line, linewidth=1.3, label=part)
        for part, line in PARTS
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(len(handles), 4),
        columnspacing=1.4,
    )  # fmt: skip
