"""Who did what, when: one row a facility."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hansa.report.figures.drawing import (
    BLUE,
    CROWD,
    FAINT,
    GREEN,
    INK,
    PINK,
    RED,
    plain_axis,
    shorten,
    time_unit,
)
from hansa.report.timeline import (
    EVALUATE,
    IDLE,
    LINGER,
    LOST,
    QUEUE,
    TRAIN,
    TRANSFER,
    Interval,
    Timeline,
    spans,
)

COLOURS = {
    QUEUE: "#f3dfb3",
    TRAIN: BLUE,
    EVALUATE: GREEN,
    LINGER: "#b9cfe6",
    TRANSFER: PINK,
    LOST: "#f6d5c4",
    IDLE: "#f1f3f6",
}
NAMES = {
    QUEUE: "in the queue",
    TRAIN: "training job",
    EVALUATE: "evaluation job",
    LINGER: "allocation without work",
    TRANSFER: "transfer",
    LOST: "lost",
    IDLE: "idle",
}

HEIGHT = 0.68
MANY = 100  # intervals; more of them are drawn as pixels in the SVG too


def timeline_figure(rows: Timeline) -> Figure | None:
    """Draw one row a facility, with versions and resumes as vertical lines."""
    if rows.end <= 0 or not rows.facilities:
        return None
    unit = time_unit(rows.end)
    figure = Figure(figsize=(10.5, 1.7 + 0.42 * len(rows.facilities)))
    axes = figure.subplots()
    crowded = len(rows.versions) > CROWD
    seen: set[str] = set()
    for place, intervals in enumerate(rows.facilities.values()):
        axes.barh(place, rows.end / unit.seconds, height=HEIGHT, color=COLOURS[IDLE])
        seen |= {one.kind for one in intervals}
        draw_row(axes, place, intervals, unit.seconds, crowded=crowded)
    _draw_marks(axes, rows, unit.seconds)
    names = [shorten(name) for name in rows.facilities]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, rows.end / unit.seconds)
    axes.set_xlabel(f"{unit.name} since the start")
    plain_axis(axes)
    handles: list[Line2D | Patch] = [
        kind_patch(kind) for kind in COLOURS if kind in seen
    ]
    if rows.versions:
        handles.append(Line2D([], [], color=INK, linewidth=0.8, label="new version"))
    if rows.resumed:
        handles.append(
            Line2D([], [], color=RED, linewidth=1.2, linestyle=":", label="resumed")
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=8, fontsize=8.5)
    return figure


def kind_patch(kind: str) -> Patch:
    """Return what stands for a kind of interval in a legend."""
    lost = kind == LOST
    return Patch(
        facecolor=COLOURS[kind],
        edgecolor=RED if lost else COLOURS[kind],
        linewidth=0.0 if lost else 0.5,
        hatch="////" if lost else None,
        label=NAMES[kind],
    )


def draw_row(
    axes: Axes,
    place: int,
    intervals: Iterable[Interval],
    scale: float,
    *,
    crowded: bool,
) -> None:
    """Draw transfers last and with an edge, so that short ones stay visible."""
    intervals = list(intervals)
    for kind in (LOST, QUEUE, LINGER, EVALUATE, TRAIN, TRANSFER):
        parts = [(a / scale, (b - a) / scale) for a, b in spans(intervals, kind)]
        if not parts:
            continue
        lost = kind == LOST
        axes.broken_barh(
            parts, (place - HEIGHT / 2, HEIGHT), facecolor=COLOURS[kind],
            edgecolor=RED if lost else COLOURS[kind], zorder=2,
            linewidth=0.0 if lost else 0.1 if crowded else 0.6,
            hatch="////" if lost else None, rasterized=len(parts) > MANY,
        )  # fmt: skip


def _draw_marks(axes: Axes, rows: Timeline, scale: float) -> None:
    crowded = len(rows.versions) > CROWD
    for at in rows.versions.values():
        axes.axvline(
            at / scale, color=INK, linewidth=0.9, zorder=3,
            ymin=0.99 if crowded else 0.0,
        )  # fmt: skip
    for at in rows.resumed:
        axes.axvline(at / scale, color=RED, linewidth=1.2, linestyle=":", zorder=4)
    every = max(1, len(rows.versions) // 25)
    for number, at in rows.versions.items():
        if number % every == 0:
            axes.annotate(
                str(number), (at / scale, 1.0), xycoords=("data", "axes fraction"),
                xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8,
                color=FAINT,
            )  # fmt: skip
