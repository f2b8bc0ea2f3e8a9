"""Who did what, when, in one run of each strategy: one panel a strategy."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hansa.report.comparison import Comparison
from hansa.report.figures.comparison.dress import WIDTH, Looks
from hansa.report.figures.comparison.loss import window
from hansa.report.figures.drawing import CROWD, INK, plain_axis, shorten, time_unit
from hansa.report.figures.gantt import COLOURS, HEIGHT, draw_row, kind_patch
from hansa.report.timeline import IDLE, Timeline


def timelines_figure(found: Comparison, looks: Looks) -> Figure | None:
    """Draw the timelines above each other, on one time axis."""
    rows = {key: row for key, row in found.timelines.items() if row.end > 0}
    if not rows:
        return None
    longest = min(max(row.end for row in rows.values()), window(found.scenarios[0]))
    unit = time_unit(longest)
    each = 0.28 + 0.15 * len(found.facilities)
    figure = Figure(figsize=(WIDTH, 0.85 + each * len(rows)))
    drawn = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, row) in zip(drawn, rows.items(), strict=True):
        axes.set_title(looks[key].label, color=looks[key].colour)
        _draw(axes, row, unit.seconds, longest)
    drawn[-1].set_xlim(0, longest / unit.seconds)
    drawn[-1].set_xlabel(f"{unit.name} since the start")
    _legend(figure, rows.values())
    return figure


def _draw(axes: Axes, row: Timeline, scale: float, longest: float) -> None:
    shown = sum(at <= longest for at in row.versions.values())
    crowded = shown * longest > CROWD * min(row.end, longest)
    for place, intervals in enumerate(row.facilities.values()):
        axes.barh(place, row.end / scale, height=HEIGHT, color=COLOURS[IDLE])
        draw_row(axes, place, intervals, scale, crowded=crowded)
    for at in row.versions.values():
        axes.axvline(
            at / scale, color=INK, linewidth=0.5, ymin=0.92 if crowded else 0.0,
            zorder=3,
        )  # fmt: skip
    names = [shorten(name, 14) for name in row.facilities]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.6)
    plain_axis(axes)


def _legend(figure: Figure, rows: Iterable[Timeline]) -> None:
    kinds = {
        one.kind for row in rows for part in row.facilities.values() for one in part
    }
    handles: list[Line2D | Patch] = [kind_patch(k) for k in COLOURS if k in kinds]
    handles.append(Line2D([], [], color=INK, linewidth=0.8, label="new version"))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=7, fontsize=7.5,
        handlelength=1.2, columnspacing=1.0,
    )  # fmt: skip
