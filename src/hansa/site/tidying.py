"""Takes out of a run's mailbox and notes what nobody needs any more."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hansa.core.ids import state_ref
from hansa.mailbox import remainders
from hansa.mailbox.files import fsync_dir, write_json
from hansa.mailbox.paths import Mailbox
from hansa.site import handover
from hansa.site.order import split_job
from hansa.site.reach import inside, small_json
from hansa.site.records import Files, Note, Records, is_key

LEFTOVER_S = 86_400.0
"""Hidden directories (broken-off transfers, refused updates) go after a day."""

Look = Callable[[], Records]
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
        kept |= _versions_in_use(look())
    removed = [number for number in there if number not in kept]
    for number in removed:
        _remove(mailbox.version(number))
    return removed


def states(mailbox: Mailbox, keep: Iterable[int], look: Look) -> list[str]:
    """Remove stored states that no order uses; return their references.

    Args:
        mailbox: The run's mailbox.
        keep: States that came with these versions stay; so do the newest two of each
            name, as an order for them may be on its way.
        look: Tells the jobs of the run.

    Raises:
        PolicyError: A symbolic link leads out of the mailbox.
    """
    ours = _is_ours(mailbox, mailbox.states)
    there, kept = mailbox.state_numbers() if ours else {}, set(keep)
    old = [
        state_ref(name, number)
        for name, numbers in there.items()
        if _is_ours(mailbox, mailbox.states / name)
        for number in numbers[:-2]
        if number not in kept
    ]
    used = _states_in_use(look()) if old else set()
    removed = [ref for ref in old if ref not in used]
    for ref in removed:
        _remove(mailbox.state(ref))
    return removed


def collected(files: Files, assignments: Iterable[str], look: Look) -> list[str]:
    """Remove what is left of assignments; return those of which nothing is left.

    Updates and checkpoints go when no job works on the assignment, the facility's
    notes when all of its batch jobs have ended. What was noted of a submission stays:
    it is small, and a request that comes late must not submit anything again. So do
    the notes of an allocation, as long as they alone say which orders it has had.

    Args:
        files: The run's files.
        assignments: Assignments whose updates the server holds, and jobs without an
            order that have ended.
        look: Tells the jobs of the run; nothing is taken from one that needs it.

    Raises:
        PolicyError: A symbolic link leads out of the mailbox.
    """
    names, mailbox = set(assignments), files.mailbox
    updates = {name: mailbox.update(name) for name in names}
    there = {name for name, path in updates.items() if _is_ours(mailbox, path)}
    checkpoints = [
        (name, path)
        for name, path in _checkpoints(mailbox)
        if name in names and _is_ours(mailbox, path)
    ]
    notes = [key for key in _noted(files) if split_job(key)[0] in names]
    if not (there or checkpoints or notes):
        return sorted(names)
    records = look()
    busy = {split_job(key)[0] for key in _at_work(records)}
    for name, path in checkpoints:
        if name not in busy:
            with suppress(FileNotFoundError):  # another request was faster
                shutil.rmtree(path)
    for name in there - busy:
        remainders.settle(mailbox, name)
        _remove(updates[name])
    held = _holding(records) | {key for key in notes if _tells_alone(files, key)}
    for key in notes:
        if key not in held:
            _note_late(records, key)
            _forget(files, key)
    return sorted(names - busy - {split_job(key)[0] for key in held})


def leftovers(mailbox: Mailbox) -> None:
    """Remove hidden directories that are a day old.

    Raises:
        PolicyError: A symbolic link leads out of the mailbox.
    """
    named = [mailbox.states / name for name in mailbox.state_numbers()]
    for folder in (mailbox.versions, mailbox.updates, mailbox.remainders, *named):
        for entry in folder.glob(".*") if _is_ours(mailbox, folder) else ():
            with suppress(FileNotFoundError):  # its writer has just renamed it
                old = entry.lstat().st_mtime < time.time() - LEFTOVER_S
                if old and entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)


def _versions_in_use(records: Records) -> set[int]:
    """Return the versions that jobs have bound or will bind."""
    versions: set[int] = set()
    mailbox = records.files.mailbox
    for key in _at_work(records):
        bound = records.files.box(key).bound
        order = mailbox.order(split_job(key)[0])
        for path, field in ((bound, "base"), (order, "version")):
            version = (small_json(mailbox.path, path) or {}).get(field)
            versions |= {version} if isinstance(version, int) else set()
    return versions


def _states_in_use(records: Records) -> set[str]:
    """Return the states that the orders of jobs name."""
    mailbox = records.files.mailbox
    orders = (mailbox.order(split_job(key)[0]) for key in _at_work(records))
    found = ((small_json(mailbox.path, path) or {}) for path in orders)
    return {str(order["control"]) for order in found if order.get("control")}


def _at_work(records: Records) -> set[str]:
    """Return the keys of all orders that a job works on or will."""
    return {key for key in _holding(records) if not records.files.over(key)}


def _holding(records: Records) -> set[str]:
    """Return the keys of batch jobs that live, and of all orders handed to them."""
    alive = records.keys_alive()
    return {
        *alive,
        *(key for host in alive for key in handover.orders_in(records.files, host)),
    }


def _noted(files: Files) -> list[str]:
    """Return the keys of jobs of which more than the submission is still noted."""
    jobs = files.state.jobs
    names = [entry.name for entry in jobs.iterdir()] if jobs.is_dir() else []
    return [name for name in names if is_key(name) and files.notes(name).job.exists()]


def _tells_alone(files: Files, host: str) -> bool:
    """Tell whether an order was handed over to a job, and then not noted."""
    orders = handover.orders_in(files, host)
    return any(files.noted(order) is None for order in orders)


def _note_late(records: Records, key: str) -> None:
    """Note a submission whose agent was stopped before it could.

    Else a late request, when ``job.json`` is gone, would not know of the job.
    """
    files = records.files
    if files.noted(key) is not None:
        return
    host = handover.host_of(files, key) or ""
    job = records.status(host or key)
    if job is not None:
        nonce = str(files.told(key).get("nonce") or "")
        write_json(files.notes(key).submitted, Note(job.id, host, nonce).to_json())


def _forget(files: Files, key: str) -> None:
    """Remove a job's notes but for that of its submission; ``job.json`` goes last."""
    notes = files.notes(key)
    shutil.rmtree(notes.handover(1).parent, ignore_errors=True)
    for path in (notes.script, notes.begin, notes.leave, notes.job):
        path.unlink(missing_ok=True)


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
    try:
        directory.replace(aside)
    except FileNotFoundError:  # another request was faster
        return
    fsync_dir(directory.parent)
    shutil.rmtree(aside)
