"""Takes out of a run's mailbox what nobody needs any more."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hansa.mailbox.files import fsync_dir
from hansa.mailbox.paths import Mailbox
from hansa.site.reach import inside
from hansa.site.records import Records
from hansa.site.rpc import split_job

LEFTOVER_S = 86_400.0
"""Hidden directories (broken-off transfers, refused updates) go after a day."""

Look = Callable[[Mailbox], Records]
"""Asks the scheduler; called only if something is to be removed."""


def versions(mailbox: Mailbox, keep: Iterable[int], look: Look) -> list[int]:
    """Remove versions that no job uses; return their numbers.

    Args:
        mailbox: The run's mailbox.
        keep: Versions to keep; so are the newest two.
        look: Tells the jobs of the run.

    Raises:
        PolicyError: A symbolic link leads out of the mailbox.
    """
    inside(mailbox.path, mailbox.versions)
    there = mailbox.version_numbers()
    # A job that starts now may have bound the newest, or the one before it.
    kept = {*keep, *there[-2:]}
    if not set(there) <= kept:
        kept |= look(mailbox).versions_in_use()
    removed = [number for number in there if number not in kept]
    for number in removed:
        _remove(mailbox.version(number))
    return removed


def collected(mailbox: Mailbox, assignments: Iterable[str], look: Look) -> list[str]:
    """Remove updates and checkpoints of assignments; return those with nothing left.

    Args:
        mailbox: The run's mailbox.
        assignments: Assignments whose updates the server holds.
        look: Tells the jobs of the run; nothing is taken from one that waits or runs.

    Raises:
        PolicyError: A symbolic link leads out of the mailbox.
    """
    names = set(assignments)
    updates = {name: mailbox.update(name) for name in names}
    there = {name for name, path in updates.items() if _is_ours(mailbox, path)}
    checkpoints = [
        (name, path)
        for name, path in _checkpoints(mailbox)
        if name in names and _is_ours(mailbox, path)
    ]
    busy = look(mailbox).assignments_alive() if there or checkpoints else set()
    for name, path in checkpoints:
        if name not in busy:
            shutil.rmtree(path)
    for name in there - busy:
        _remove(updates[name])
    return sorted(names - busy)


def leftovers(mailbox: Mailbox) -> None:
    """Remove hidden directories of versions and updates that are a day old.

    Raises:
        PolicyError: A symbolic link leads out of the mailbox.
    """
    for folder in (mailbox.versions, mailbox.updates):
        for entry in folder.glob(".*") if _is_ours(mailbox, folder) else ():
            with suppress(FileNotFoundError):  # its writer has just renamed it
                old = entry.lstat().st_mtime < time.time() - LEFTOVER_S
                if old and entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)


def _checkpoints(mailbox: Mailbox) -> Iterator[tuple[str, Path]]:
    """Yield where jobs may have checkpoints, each with its assignment."""
    for entry in mailbox.jobs.iterdir() if mailbox.jobs.is_dir() else ():
        with suppress(ValueError):  # not a job's directory
            assignment, number = split_job(entry.name)
            yield assignment, mailbox.job(assignment, number).checkpoint


def _is_ours(mailbox: Mailbox, path: Path) -> bool:
    """Tell whether it is a directory of the mailbox, and no link to another one."""
    return inside(mailbox.path, path).is_dir() and not path.is_symlink()


def _remove(directory: Path) -> None:
    """Remove a directory so that it is never seen half-removed."""
    aside = directory.with_name(f".removed-{directory.name}-{os.getpid()}")
    directory.replace(aside)
    fsync_dir(directory.parent)
    shutil.rmtree(aside)
