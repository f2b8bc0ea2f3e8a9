"""The files of a comparison: one page, each picture as PDF and PNG.

Needs jinja2 and matplotlib (extra `report`).
"""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import Environment, StrictUndefined

import hansa
from hansa.report.comparison import Comparison
from hansa.report.figures.comparison.plates import all_plates
from hansa.report.html import resource, shown
from hansa.report.tables import Table


def comparison_files(
    found: Comparison,
    tables: Iterable[Table],
    words: tuple[str, tuple[str, ...]],
    command: str,
) -> dict[str, bytes]:
    """Return page and pictures by file name.

    Args:
        found: The comparison.
        tables: For the page.
        words: A headline, and notes under it.
        command: What the study was made with.
    """
    plates = all_plates(found)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.from_string(resource("comparison.html.j2")).render(
        css=resource("style.css"),
        found=found,
        headline=words[0],
        notes=words[1],
        pictures=[shown(one.picture) for one in plates],
        tables=[table for table in tables if table.rows],
        command=command,
        version=hansa.__version__,
    )
    files = {"index.html": page.encode()}
    for one in plates:
        files[f"{one.picture.name}.png"] = one.picture.png
        files[f"{one.picture.name}.pdf"] = one.pdf
    return files
