"""What would keep a facility from working, before anything is spent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hansa.core.errors import HansaError
from hansa.spec.site import SiteSpec

Found = tuple[str, str]
"""What is wrong, and what to do about it."""


def problems(site: SiteSpec, ask_scheduler: Callable[[], object]) -> list[Found]:
    """Return what is wrong; empty when all is well. Writes nothing.

    Args:
        site: The facility.
        ask_scheduler: Asks the batch system for its jobs.
    """
    return [
        *_mailbox(site.mailbox),
        *_scheduler(ask_scheduler),
        *_data(site),
        *_python(site.environment.python),
    ]


def free_bytes(path: Path) -> int:
    """Return the free space where `path` is, or will be."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    return next(here for here in (path, *path.parents) if here.exists())


def _mailbox(path: Path) -> Iterator[Found]:
    here = _nearest(path)
    if not here.is_dir():
        yield (f"The mailbox {path} can't be made: {here} is no directory.", _MAILBOX)
    elif not os.access(here, os.R_OK | os.W_OK | os.X_OK):
        yield (f"The mailbox {path} can't be written by this user.", _MAILBOX)


_MAILBOX = (
    "Name a directory in `mailbox` of site.yaml that login and compute nodes can write."
)


def _scheduler(ask: Callable[[], object]) -> Iterator[Found]:
    try:
        ask()
    except HansaError as error:
        yield (error.message, error.hint or "Check `scheduler` in site.yaml.")


def _data(site: SiteSpec) -> Iterator[Found]:
    for name, access in site.tasks.items():
        if access.data is not None and not access.data.exists():
            hint = f"Correct `tasks.{name}.data` in site.yaml, or put the data there."
            yield (f"The data of the task {name!r} is not there: {access.data}.", hint)
    for name, folder in site.models.items():
        if not folder.exists():
            hint = "Correct `models` in site.yaml, or put the model there."
            yield (f"The model {name!r} is not there: {folder}.", hint)


def _python(python: str) -> Iterator[Found]:
    # A bare name may come from `setup` (a module, an environment): not known here.
    if "/" in python and not os.access(python, os.X_OK):
        hint = "Correct `environment.python` in site.yaml."
        yield (f"The interpreter {python} can't be run.", hint)
