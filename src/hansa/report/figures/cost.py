"""What each facility spent and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hansa.core.units import format_size
from hansa.report.figures.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PALE,
    RED,
    SKY,
    plain_axis,
    shorten,
)
from hansa.report.model import RunSummary
from hansa.report.tables import hours

Part = tuple[str, str, list[float]]


def cost_figure(summary: RunSummary) -> Figure | None:
    """Draw node-hours, bytes and the fate of the orders, by facility."""
    names = list(summary.facilities)
    each = list(summary.facilities.values())
    if not any(one.jobs or one.assignments or one.bytes_sent for one in each):
        return None
    figure = Figure(figsize=(10.5, 1.35 + 0.34 * len(names)))
    power, moved, orders = figure.subplots(1, 3, sharey=True)
    _bars(power, "node-hours", [("", BLUE, [one.node_hours for one in each])], hours)
    _bars(
        moved,
        "data",
        [
            ("sent", SKY, [float(one.bytes_sent) for one in each]),
            ("received", BLUE, [float(one.bytes_received) for one in each]),
        ],
        format_size,
    )
    _bars(
        orders,
        "orders",
        [
            ("applied", GREEN, [float(one.updates_applied) for one in each]),
            ("late", ORANGE, [float(one.updates_late) for one in each]),
            ("waiting", PALE, [float(one.updates_pending) for one in each]),
            ("failed", RED, [float(one.failures) for one in each]),
        ],
        lambda number: f"{number:.0f}",
    )
    power.set_yticks(range(len(names)), [shorten(n) for n in names])
    power.set_ylim(len(names) - 0.4, -0.6)
    return figure


def _bars(
    axes: Axes, title: str, parts: Sequence[Part], text: Callable[[float], str]
) -> None:
    """Draw stacked horizontal bars of (label, colour, lengths), with their sums."""
    places = range(len(parts[0][2]))
    ends = [0.0 for _ in places]
    for label, colour, lengths in parts:
        if label and not any(lengths):
            continue
        axes.barh(places, lengths, left=ends, height=0.62, color=colour, label=label)
        ends = [end + size for end, size in zip(ends, lengths, strict=True)]
    for place, end in zip(places, ends, strict=True):
        axes.annotate(
            text(end), (end, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_xlim(0, max(ends) * 1.25 or 1.0)
    plain_axis(axes, left=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.02, 0.0), ncols=4, fontsize=8.5,
            handlelength=0.9, columnspacing=1.0,
        )  # fmt: skip
