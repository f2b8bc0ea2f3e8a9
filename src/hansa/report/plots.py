"""All pictures of a report. Needs matplotlib (extra `report`).

Each module of `figures` draws one figure from a summary or a timeline, for 1 to 20
facilities and 1 to 200 versions, or returns None when there is nothing to draw.
"""

from __future__ import annotations

from hansa.report.figures.cost import cost_figure
from hansa.report.figures.drawing import Picture, render, style
from hansa.report.figures.gantt import timeline_figure
from hansa.report.figures.loss import loss_figure
from hansa.report.figures.tasks import task_figure
from hansa.report.model import RunSummary
from hansa.report.timeline import Timeline

_LOSS = (
    "The global model (dark line) and, beside each version, the local models of the "
    "facilities that it was made from, all measured on the same test data. Lower is "
    "better."
)
_TASKS = (
    "Test loss of the first and of the last measured global model; the diamond is the "
    "best local model of any facility. Lower is better."
)
_TIMELINE = (
    "By the server's clock. Vertical lines mark the versions as they were published."
)
_COST = "As charged by the facilities' schedulers, and as counted by the server."


def pictures(summary: RunSummary, rows: Timeline) -> list[Picture]:
    """Return all pictures that have something to show.

    Args:
        summary: What the run came to.
        rows: What the facilities were doing, of the same events.
    """
    drawn = []
    with style():
        for name, figure, title, caption in (
            ("loss", loss_figure(summary), "Test loss", _LOSS),
            ("tasks", task_figure(summary), "Test loss by task", _TASKS),
            ("timeline", timeline_figure(rows), "Who did what, when", _TIMELINE),
            ("cost", cost_figure(summary), "Cost by facility", _COST),
        ):
            if figure is not None:
                drawn.append(render(figure, name, title, caption))
    return drawn
