"""Words to jobs: cancel, begin, leave."""

from __future__ import annotations

import time
from collections.abc import Iterable

from hansa.mailbox.files import write_json
from hansa.scheduler.base import JobState
from hansa.site import handover
from hansa.site.batch import Batch
from hansa.site.records import Files, Records

_QUEUED = (JobState.QUEUED, JobState.HELD)


def cancel(records: Records, batch: Batch, keys: Iterable[str]) -> list[str]:
    """Give orders up, and take their jobs out of the queue; return which were told.

    An order in another job's allocation is given up there; the job goes on. A job
    whose own order has delivered is left alone if others may be in its allocation.

    Raises:
        SchedulerError: The batch system refuses or does not answer.
    """
    told: list[str] = []
    ids: list[str] = []
    for key in keys:
        host = handover.host_of(records.files, key)
        job = records.status(host or key)
        if job is None or job.state.final:
            continue
        if host is not None:
            if not handover.is_pending(records.files, key):
                continue
            _write(records.files, key)
        elif _hosts_others(records.files, key):
            continue
        else:
            ids.append(job.id)
        told.append(key)
    batch.cancel(ids)
    return told


def refuse(records: Records, keys: Iterable[str], seconds: float) -> None:
    """Have jobs that were never submitted refused for so long.

    A request may wait on its way, and come after the word that it is not wanted.
    """
    files = records.files
    for key in keys:
        if files.noted(key) is None and records.status(key) is None:
            files.notes(key).path.mkdir(mode=0o700, parents=True, exist_ok=True)
            until = {"schema": 1, "until": time.time() + seconds}
            write_json(files.notes(key).refuse, until)


def begin(files: Files, keys: Iterable[str]) -> list[str]:
    """Tell jobs to begin; return which were told, whatever they do now."""
    told = [key for key in keys if files.notes(key).path.is_dir()]
    for key in told:
        if not files.notes(key).begin.exists():
            write_json(files.notes(key).begin, _now())
    return told


def leave(records: Records, batch: Batch, keys: Iterable[str]) -> list[str]:
    """Tell jobs to finish the orders they have, and to end; return which were told.

    A job that waits in the queue leaves it, unless orders were handed over to it that
    nobody has given up.

    Raises:
        SchedulerError: The batch system refuses or does not answer.
    """
    told: list[str] = []
    ids: list[str] = []
    files = records.files
    for key in keys:
        job = records.status(key)
        hosted = handover.host_of(files, key) is not None
        if job is None or job.state.final or hosted:
            continue
        # Written for one in the queue, too: it may be starting now.
        _write(files, key)
        orders = handover.orders_in(files, key)
        waited_for = any(handover.is_pending(files, order) for order in orders)
        if job.state in _QUEUED and not waited_for:
            ids.append(job.id)
        told.append(key)
    batch.cancel(ids)
    return told


def _hosts_others(files: Files, key: str) -> bool:
    told = files.told(key)
    has_order = told.get("order") is not None
    return handover.may_host(told) and has_order and files.delivered(key)


def _write(files: Files, key: str) -> None:
    if not files.notes(key).leave.exists():
        write_json(files.notes(key).leave, _now())


def _now() -> dict[str, float]:
    return {"schema": 1, "at": time.time()}
