"""Test loss by task: the global model against the base, each local and the central."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hansa.report.evaluation import (
    BASE,
    CENTRAL,
    GLOBAL,
    LOCAL,
    Arm,
    Evaluation,
    verdict,
)
from hansa.report.figures.drawing import (
    BLUE,
    GREEN,
    INK,
    MARKERS,
    ORANGE,
    PALE,
    Picture,
    plain_axis,
    render,
    shorten,
    style,
)

_LONGEST = 34
_COLOURS = {BASE: PALE, GLOBAL: BLUE, CENTRAL: GREEN, LOCAL: ORANGE}
_MEAN = "mean of the tasks"


def evaluation_picture(found: Evaluation) -> Picture:
    """Draw the test loss of every model, by task and in the mean."""
    with style():
        return render(
            _figure(found),
            "evaluation",
            f"Test loss of {found.run} by task",
            "Bars: the run's model, and where it began. Marks: models that one "
            f"facility trained alone, or on all data. {verdict(found)}",
        )


def _figure(found: Evaluation) -> Figure:
    tasks = sorted(found.tasks, key=lambda task: (task.partition("-")[0], task))
    figure = Figure(figsize=(9.0, 1.6 + 0.46 * (len(tasks) + 1)))
    axes = figure.subplots()
    places = {task: 1.3 + row for row, task in enumerate(tasks)}
    _row(axes, 0.0, found, {arm.name: found.mean_loss(arm) for arm in found.arms})
    for task, place in places.items():
        _row(axes, place, found, {arm.name: arm.losses[task] for arm in found.arms})
    axes.axhline(0.65, color=PALE, linewidth=0.8)
    labels = [_MEAN, *(shorten(task, _LONGEST) for task in tasks)]
    axes.set_yticks([0.0, *places.values()], labels)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(max([0.0, *places.values()]) + 0.6, -0.6)
    axes.set_xlim(left=0)
    axes.margins(x=0.05)
    axes.set_xlabel("test loss")
    axes.grid(visible=True, axis="x")
    plain_axis(axes, left=True)
    handles = [_handle(arm, found) for arm in found.arms]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    return figure


def _row(axes: Axes, place: float, found: Evaluation, loss: dict[str, float]) -> None:
    for arm in found.arms:
        if arm.kind in {BASE, GLOBAL}:
            shift = -0.19 if arm.kind == BASE else 0.19
            colour = _COLOURS[arm.kind]
            axes.barh(place + shift, loss[arm.name], height=0.36, color=colour)
    for arm in found.arms:
        if arm.kind in {LOCAL, CENTRAL}:
            axes.plot([loss[arm.name]], [place + 0.19], **_mark(arm, found))


def _mark(arm: Arm, found: Evaluation) -> dict[str, Any]:
    index = found.of(LOCAL).index(arm) if arm.kind == LOCAL else -1
    return {
        "linestyle": "",
        "marker": MARKERS[index % (len(MARKERS) - 1)] if arm.kind == LOCAL else "X",
        "color": _COLOURS[arm.kind],
        "markeredgecolor": INK,
        "markeredgewidth": 0.7,
        "markersize": 6,
    }


def _handle(arm: Arm, found: Evaluation) -> Line2D | Patch:
    label = shorten(arm.name)
    if arm.kind in {BASE, GLOBAL}:
        return Patch(color=_COLOURS[arm.kind], label=label)
    return Line2D([], [], label=label, **_mark(arm, found))
