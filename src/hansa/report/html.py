"""One page that shows a run; it needs no network and no other file.

Needs jinja2 (extra `report`). All text is escaped: reasons and names come from
facilities, and a page is opened in a browser.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

import hansa
from hansa.report.figures.drawing import Picture
from hansa.report.headline import cards, headline
from hansa.report.model import RunSummary
from hansa.report.tables import (
    allocations_table,
    facilities_table,
    jobs_table,
    troubles_table,
    versions_table,
)


def page(summary: RunSummary, pictures: Iterable[Picture], lock_text: str) -> str:
    """Return the whole page.

    Args:
        summary: What the run came to.
        pictures: What `hansa.report.plots.pictures` drew.
        lock_text: The text of ``federation.lock.yaml``.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(resource("template.html.j2"))
    tables = [
        versions_table(summary),
        facilities_table(summary),
        allocations_table(summary),
        troubles_table(summary),
    ]
    commands = _commands(summary.run)
    return template.render(
        css=resource("style.css"),
        summary=summary,
        kicker=_kicker(summary),
        headline=headline(summary),
        cards=cards(summary),
        pictures=[shown(picture) for picture in pictures],
        tables=[table for table in tables if table.rows],
        jobs=jobs_table(summary),
        lock_text=lock_text,
        commands=commands,
        width=max(len(command) for command, _ in commands),
        version=hansa.__version__,
    )


def resource(name: str) -> str:
    """Return the text of a file of this package."""
    return files("hansa.report").joinpath(name).read_text(encoding="utf-8")


def shown(picture: Picture) -> dict[str, str]:
    """Return a picture as a template has it."""
    # As an image the SVG can't run anything, nor clash with the ids of another one.
    data = base64.b64encode(picture.svg).decode("ascii")
    return {
        "title": picture.title,
        "caption": picture.caption,
        "uri": f"data:image/svg+xml;base64,{data}",
    }


def _kicker(summary: RunSummary) -> str:
    began = datetime.fromtimestamp(summary.started, UTC)
    words = [
        "Hansa federated run",
        summary.strategy,
        summary.task,
        summary.model,
        f"{began:%d %B %Y, %H:%M} UTC",
    ]
    return " · ".join(word for word in words if word)


def _commands(run: str) -> tuple[tuple[str, str], ...]:
    lock = f"runs/{run}/federation.lock.yaml"
    return (
        (f"hansa replay {run}", "the journal again, step by step"),
        (f"hansa report {run} --json", "the figures of this page"),
        (f"hansa run {lock} --id {run}-again", "the same plan as a new run"),
    )
