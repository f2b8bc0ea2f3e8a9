"""The files of a report, each written aside and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hansa.core.errors import PluginError
from hansa.core.events import Event
from hansa.report.model import RunSummary
from hansa.report.timeline import timeline

EXTRA = frozenset({"jinja2", "matplotlib"})


def write_report(
    summary: RunSummary, events: Iterable[Event], lock_text: str, directory: Path
) -> list[Path]:
    """Write ``index.html``, the pictures as PNG, and ``report.json``.

    Args:
        summary: What `hansa.report.summarise` made of the same events.
        events: The journal's events, in order.
        lock_text: The text of ``federation.lock.yaml``.
        directory: Where to; made if it is missing. Files of an earlier report are
            replaced, one by one.

    Returns:
        The files, the page first.

    Raises:
        PluginError: The extra `report` is not installed.
        JournalError: The events don't begin with the start of a run.
        OSError: The directory can't be written.
    """
    files = {"report.json": report_json(summary).encode()}
    files |= _drawn(summary, events, lock_text)
    return write_files(files, directory)


def write_files(files: Mapping[str, bytes], directory: Path) -> list[Path]:
    """Write files by name into a folder, which is made if it is missing.

    Returns:
        Their paths, ``index.html`` first.

    Raises:
        OSError: The folder can't be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _replace(directory / name, data)
    names = sorted(files, key=lambda name: (name != "index.html", name))
    return [directory / name for name in names]


def report_json(summary: RunSummary) -> str:
    """Return the text of ``report.json``; needs nothing that is not installed."""
    text = json.dumps(summary.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _drawn(
    summary: RunSummary, events: Iterable[Event], lock_text: str
) -> dict[str, bytes]:
    """Return page and pictures; only here is the extra `report` needed."""
    with extra_needed("hansa report --json"):
        from hansa.report.html import page  # noqa: PLC0415
        from hansa.report.plots import pictures  # noqa: PLC0415
    drawn = pictures(summary, timeline(events))
    text = page(summary, drawn, lock_text)
    return {
        "index.html": text.encode(),
        **{f"{picture.name}.png": picture.png for picture in drawn},
    }


@contextmanager
def extra_needed(instead: str) -> Iterator[None]:
    """Explain a missing extra `report` where it is imported.

    Args:
        instead: The command that works without it.

    Raises:
        PluginError: The extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise PluginError(
            f"The pictures and the page need {error.name}, which is not installed.",
            hint=f"Run `pip install 'hansa[report]'`; `{instead}` works without it.",
        ) from error


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
