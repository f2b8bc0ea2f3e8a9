"""Runs a job that waits in the queue for a block; called inside of that block.

The block's own environment says that this is one, so that nobody can have a job run on
a login node: its template (`hansa site globus-endpoint --block`) sets ``HANSA_BLOCK``
to the number of nodes and ``HANSA_BLOCK_ENDS`` to the end of its walltime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hansa.core.errors import PolicyError, SchedulerError
from hansa.core.ids import job_name
from hansa.scheduler import block_run
from hansa.scheduler.base import Scheduler
from hansa.scheduler.block import BlockScheduler
from hansa.scheduler.block_queue import Entry, QueueError, Record, Store
from hansa.scheduler.block_run import Limits
from hansa.site.order import split_job
from hansa.site.records import Files

BLOCK = "HANSA_BLOCK"
"""The variable that holds the number of nodes of the block around this process."""

ENDS = ("HANSA_BLOCK_ENDS", "SLURM_JOB_END_TIME")
"""Variables that hold the end of the block, in unix seconds; the first one goes."""


def carry_out(
    scheduler: Scheduler,
    files: Files,
    key: str,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Take a job and run it to its end; return how it stands then.

    A job that somebody has taken before, or that was cancelled, is not run.

    Args:
        scheduler: The facility's driver.
        files: Files of the run.
        key: The job, as ``train-0001-polaris-1.1``.
        environ: Environment variables; None: those of this process.

    Returns:
        ``job`` (its id), ``state``, ``taken`` (whether this call has run it) and
        ``reason``.

    Raises:
        PolicyError: This is no block, or one with too few nodes.
        SchedulerError: There is no such job, or the queue can't be used.
    """
    environ = os.environ if environ is None else environ
    if not isinstance(scheduler, BlockScheduler):
        raise PolicyError(
            "This facility submits jobs to its batch system and runs none on demand.",
            hint="A facility whose endpoint holds a block has `scheduler: {type: "
            "block, nodes: N}` in its site.yaml; else remove `gateway.block`.",
        )
    nodes = _nodes(environ)
    store = Store(scheduler.directory)
    stale_s = scheduler.options.stale
    try:
        entry = _find(store, files, key)
        _check_nodes(entry, nodes)
        limits = Limits(stale_s, _ends(environ))
        taken = block_run.work(entry, limits)
        record = store.record(entry.id, stale_s)
    except QueueError as error:
        raise SchedulerError(
            f"The queue for the block is not well: {error}."
        ) from error
    if record is None:
        raise _unknown(key)
    return {
        "job": entry.id,
        "state": record["state"],
        "taken": taken,
        "reason": record["reason"] or _why_not(record),
    }


def _why_not(record: Record) -> str:
    waits = record["state"] == "QUEUED"
    return "too little is left of the block's walltime" if waits else ""


def _nodes(environ: Mapping[str, str]) -> int:
    text = environ.get(BLOCK, "")
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise PolicyError(
        f"Jobs are run in a block of nodes only, and {BLOCK} does not say that this is "
        "one.",
        hint=f"Is `gateway.block.endpoint` the endpoint that holds the block? Its "
        f"template must have `export {BLOCK}=N` (its number of nodes) in "
        "`worker_init`; `hansa site globus-endpoint --block` writes such a template.",
    )


def _ends(environ: Mapping[str, str]) -> float | None:
    for name in ENDS:
        text = environ.get(name, "")
        if text.isascii() and text.isdecimal():
            return float(text)
    return None


def _find(store: Store, files: Files, key: str) -> Entry:
    """Return the files of a job: of the id that was noted, else of its name."""
    name, note = job_name(files.mailbox.run, *split_job(key)), files.noted(key)
    noted = None if note is None else store.entry(note.job)
    if noted is not None and noted.asked().name == name:
        return noted
    named = [record for record in store.records() if record["name"] == name]
    found = store.entry(named[-1]["id"]) if named else None
    if found is None:
        raise _unknown(key)
    return found


def _check_nodes(entry: Entry, nodes: int) -> None:
    asked = entry.asked()
    if asked.nodes > nodes:
        raise PolicyError(
            f"{asked.name} asks for {asked.nodes} nodes; this block has {nodes}.",
            hint="`scheduler.nodes` in site.yaml, `gateway.block.nodes` in "
            "federation.yaml and the endpoint's `nodes_per_block` must say the same.",
        )


def _unknown(key: str) -> SchedulerError:
    return SchedulerError(
        f"No job {key} waits in the queue for the block.",
        hint="Do login and compute nodes share the folder `state` of site.yaml?",
    )
