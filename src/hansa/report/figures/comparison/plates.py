"""All pictures of a comparison."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from hansa.report.comparison import Comparison
from hansa.report.figures.comparison.dress import (
    Looks,
    Plate,
    looks_of,
    paper_style,
    plate,
)
from hansa.report.figures.comparison.loss import loss_figure
from hansa.report.figures.comparison.pareto import pareto_figure
from hansa.report.figures.comparison.shares import (
    participation_figure,
    staleness_figure,
)
from hansa.report.figures.comparison.targets import node_hours_figure, time_figure
from hansa.report.figures.comparison.timelines import timelines_figure

Draw = Callable[[Comparison, Looks], Figure | None]

_PICTURES: tuple[tuple[str, Draw, str, str], ...] = (
    (
        "loss", loss_figure, "Test loss against wall clock",
        "Median over the seeds, with the quartiles as a band. A loss holds until the "
        "next version is measured; the last one is carried on.",
    ),
    (
        "time_to_target", time_figure, "Time to the target loss",
        "Median over the seeds with a 95% bootstrap interval. A triangle beyond the "
        "right edge: fewer than half of the runs reach the target.",
    ),
    (
        "node_hours_to_target", node_hours_figure, "Node-hours to the target loss",
        "Used by all facilities together until the target was reached, jobs that still "
        "ran included. Median over the seeds with a 95% bootstrap interval.",
    ),
    (
        "pareto", pareto_figure, "Time against node-hours",
        "Medians; nothing is both faster and cheaper than what lies on the grey line.",
    ),
    (
        "participation", participation_figure, "Who took part",
        "Mean over seeds and scenarios; the dark line spans the scenarios' means.",
    ),
    (
        "staleness", staleness_figure, "How old updates were",
        "Versions published between the one that an update was trained from and the "
        "one that it went into; all seeds and scenarios together.",
    ),
    (
        "timelines", timelines_figure, "Who did what, when",
        "One run of each strategy and mode, with the first seed, in the first "
        "scenario; where there is a target, cut some time after all have reached it.",
    ),
)  # fmt: skip


def all_plates(found: Comparison) -> list[Plate]:
    """Return all pictures that have something to show."""
    drawn, looks = [], looks_of(found)
    with paper_style():
        for name, draw, title, caption in _PICTURES:
            figure = draw(found, looks)
            if figure is not None:
                drawn.append(plate(figure, name, title, caption))
    return drawn
