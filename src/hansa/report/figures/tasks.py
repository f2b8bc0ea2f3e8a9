"""Test loss by task: where the run began, where it came to, and the best local."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from math import nan
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hansa.report.figures.drawing import (
    BLUE,
    INK,
    ORANGE,
    PALE,
    plain_axis,
    shorten,
)
from hansa.report.model import RunSummary, finite
from hansa.report.tables import loss

LONGEST = 34  # letters of a task's name
MINUS = "\N{MINUS SIGN}"

_DIAMOND: dict[str, Any] = {
    "marker": "D",
    "color": ORANGE,
    "markeredgecolor": INK,
    "markeredgewidth": 0.7,
    "markersize": 6,
}


class _Row(NamedTuple):
    """A task, or the heading of a group, and how far down it is drawn."""

    task: str | None
    label: str
    place: float


def task_figure(summary: RunSummary) -> Figure | None:
    """Draw the loss by task, first against last version, and the best local model."""
    measured = [one for one in summary.versions if one.eval_loss_by_task]
    if not measured:
        return None
    first = measured[0] if len(measured) > 1 else None
    last, best = measured[-1], summary.best_local
    before = {} if first is None else first.eval_loss_by_task
    local = {} if best is None else best.eval_loss_by_task
    rival = best.facility if best and set(local) & set(last.eval_loss_by_task) else None
    rows = _task_rows(last.eval_loss_by_task)
    figure = Figure(figsize=(9.0, max(2.4, 1.3 + 0.44 * rows[-1].place)))
    axes = figure.subplots()
    for row in rows:
        if row.task is None:
            _heading(axes, row)
        else:
            after = last.eval_loss_by_task[row.task]
            _bars(axes, row.place, before.get(row.task, nan), after)
            _diamond(axes, row.place + (0.19 if first else 0), local.get(row.task, nan))
    bars = [row for row in rows if row.task is not None]
    axes.set_yticks([row.place for row in bars], [row.label for row in bars])
    axes.set_ylim(rows[-1].place + 0.6, -0.6)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("test loss")
    axes.grid(visible=True, axis="x")
    plain_axis(axes, left=True)
    shown = [one.version for one in (first, last) if one is not None]
    figure.legend(handles=_handles(shown, rival), loc="outside upper left", ncols=3)
    return figure


def _handles(versions: list[int], rival: str | None) -> list[Line2D | Patch]:
    colours = (PALE, BLUE)[-len(versions) :]
    handles: list[Line2D | Patch] = [
        Patch(color=colour, label=f"global model, version {version}")
        for colour, version in zip(colours, versions, strict=True)
    ]
    if rival is not None:
        label = f"best local model ({shorten(rival)})"
        handles.append(Line2D([], [], linestyle="", label=label, **_DIAMOND))
    return handles


def _heading(axes: Axes, row: _Row) -> None:
    axes.text(
        -0.012, row.place, row.label, transform=axes.get_yaxis_transform(),
        ha="right", va="center", fontweight="bold",
    )  # fmt: skip


def _diamond(axes: Axes, place: float, number: float) -> None:
    axes.plot([number], [place], linestyle="", **_DIAMOND)


def _task_rows(losses: Mapping[str, float]) -> list[_Row]:
    """Return the rows from top to bottom, with a heading above every group.

    Tasks that share the part of their name before the first dash form a group;
    those that are alone come last, without a heading.
    """
    groups = [
        sorted(names, key=lambda name: losses[name])
        for _, names in groupby(sorted(losses), key=_prefix)
    ]
    rows: list[_Row] = []
    place = 0.0
    for names in sorted(groups, key=lambda names: (len(names) == 1, losses[names[0]])):
        cut = 0
        if len(names) > 1:
            head = _prefix(names[0])
            cut = len(head) + 1
            rows.append(_Row(None, shorten(head.replace("_", " "), LONGEST), place))
            place += 0.75
        for name in names:
            rows.append(_Row(name, shorten(name[cut:], LONGEST), place))
            place += 1.0
        place += 0.2 * (len(names) > 1)
    return rows


def _prefix(task: str) -> str:
    return task.partition("-")[0]


def _bars(axes: Axes, place: float, before: float, after: float) -> None:
    if finite(before):
        axes.barh(place - 0.19, before, height=0.36, color=PALE)
    if not finite(after):
        return
    axes.barh(place + (0.19 if finite(before) else 0), after, height=0.36, color=BLUE)
    text = loss(after)
    if finite(before) and before > 0:
        change = f"{(after - before) / before:+.0%}".replace("-", MINUS)
        text += f"  ({change})"
    axes.annotate(
        text, (max(after, before) if finite(before) else after, place),
        xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5,
    )  # fmt: skip
