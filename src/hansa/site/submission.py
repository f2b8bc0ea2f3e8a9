"""Exactly one job for what was asked, however often and by how many it is asked."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.core import plugins
from hansa.core.errors import FacilityError, PolicyError, SchedulerError
from hansa.core.ids import job_key, job_name
from hansa.mailbox.files import (
    fsync_dir,
    read_json,
    storage_full,
    write_json,
    write_text,
)
from hansa.mailbox.handover import Handover
from hansa.mailbox.links import refuse_links
from hansa.mailbox.paths import Mailbox
from hansa.scheduler.base import JobStatus, Scheduler
from hansa.site import handover, policy, prepare
from hansa.site.batch import Batch
from hansa.site.order import Order
from hansa.site.reach import alone, inside, small_json
from hansa.site.records import Files, Note, Records
from hansa.site.rpc import Place, Submit
from hansa.site.watch import Watch
from hansa.spec.site import SiteSpec

log = logging.getLogger(__name__)

ORDER_LIMIT = 256 * 1024
"""An order whose JSON is larger is refused."""

CLOCKS_S = 60.0
"""The clocks of scheduler and file system may differ by so much."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where jobs are submitted.

    Attributes:
        site: The facility's file.
        scheduler: Driver of its batch system.
        batch: Talks to the batch system.
        watch: Knows its jobs.
    """

    site: SiteSpec
    scheduler: Scheduler
    batch: Batch
    watch: Watch


def check(site: SiteSpec, ask: Submit | Place) -> None:
    """Refuse what the facility does not allow or can't do.

    Raises:
        PolicyError: Says why.
    """
    policy.check(site, ask)
    if isinstance(ask, Submit):
        _check_order(site, ask.order)


def preview(desk: Desk, ask: Submit, *, ask_batch: bool) -> dict[str, Any]:
    """Return what would be submitted; nothing is written to stay.

    Args:
        desk: Where.
        ask: An allowed request.
        ask_batch: Whether the batch system is asked if it would accept the script.

    Raises:
        SchedulerError: It would not.
    """
    spec = prepare.job_spec(desk.site, ask)
    script = desk.scheduler.render(spec)
    notes = prepare.notes_for_people(desk.site, ask)
    found = {"job": None, "name": spec.name, "found": False, "host": ""}
    said = {**found, "script": script, "notes": notes}
    if ask_batch:
        with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
            path = Path(folder, "script.sh")
            path.write_text(script, encoding="utf-8")
            said["accepted"] = desk.batch.accepts(path)
    return said


class Submission:
    """One allowed request, to be carried out once.

    Args:
        desk: Where to submit.
        files: Files of the run.
        ask: The request.
    """

    def __init__(self, desk: Desk, files: Files, ask: Submit | Place) -> None:
        self._desk = desk
        self._site = desk.site
        self._files = files
        self._ask = ask
        self._nonce = prepare.nonce_of(ask)
        self._key = job_key(prepare.assignment_of(ask), ask.number)
        self._notes = files.notes(self._key)
        self._seen: Records | None = None

    def carry_out(self) -> dict[str, Any]:
        """Return the job: one that there is already, or a new one.

        Raises:
            PolicyError: The queue is full, another run of this id was here, or links
                lead out of the mailbox.
            SchedulerError: The batch system refuses or does not answer.
            StorageFull: There is no space.
        """
        mailbox, assignment = self._files.mailbox, prepare.assignment_of(self._ask)
        inside(mailbox.path, self._files.box(self._key).path)
        inside(mailbox.path, mailbox.orders)
        inside(mailbox.path, mailbox.update(assignment))
        refuse_links(self._files.box(self._key).path)
        own_folder(self._site.state)
        lock = self._files.state.lock(assignment)
        with storage_full(self._site.state), alone(lock):
            if isinstance(self._ask, Submit):
                _check_control(mailbox, self._ask.order)
                _write_order(self._site, mailbox, self._ask.order)
            known = self._known()
            note = known or self._new()
        return {
            "job": note.job,
            "name": job_name(self._ask.run, assignment, self._ask.number),
            "found": known is not None,
            "host": note.host,
        }

    # --- is there one already? --------------------------------------------------------

    def _known(self) -> Note | None:
        """Return what was submitted before, at whatever point that was stopped.

        One case can't be told: the agent was stopped before it noted a job, and when it
        is asked again that job is over and forgotten by the batch system. Then a second
        job is submitted; it never works beside the first, and one that finds the
        first's update ends at once.
        """
        note = self._files.note(self._key)
        if note is not None and note.nonce == self._nonce:
            return note
        records = self._look()
        if self._of_another_run(note):
            self._forget(records)
        found = self._handed_over(records)
        named = records.named(self._key)
        if found is None and named is not None and self._is_ours(named):
            found = Note(named.id, "", self._nonce)
        if found is not None:
            write_json(self._notes.submitted, found.to_json())
        return found

    def _is_ours(self, named: JobStatus) -> bool:
        """Tell our job from one of an older run, which may still be shown long after.

        One that waits or runs is ours: better one job too few than one too many.
        """
        if not named.state.final or named.submitted is None:
            return True
        try:
            prepared = self._notes.job.stat().st_mtime
        except FileNotFoundError:
            return False
        return named.submitted > prepared - CLOCKS_S

    def _of_another_run(self, note: Note | None) -> bool:
        told = self._files.told(self._key)
        return note is not None or bool(told and told.get("nonce") != self._nonce)

    def _forget(self, records: Records) -> None:
        """Remove the notes of an older run's job that had this one's key."""
        if records.alive(self._key):
            raise PolicyError(
                f"A job of an older run {self._ask.run!r} is still in the queue of "
                f"{self._site.name}: {job_name(self._ask.run, *_split(self._ask))}.",
                hint="Cancel it there, or use another run id.",
            )
        aside = self._notes.path.with_name(f".{self._key}.{os.urandom(4).hex()}")
        self._notes.path.replace(aside)
        shutil.rmtree(aside)

    def _handed_over(self, records: Records) -> Note | None:
        """Find an order that was handed over before anybody could note it."""
        host = handover.host_of(self._files, self._key)
        job = None if host is None else records.status(host)
        if host is None or job is None:
            return None
        if job.state.final and not self._files.delivered(self._key):
            return None  # it ended without having done this one
        return Note(job.id, host, self._nonce)

    # --- a new one --------------------------------------------------------------------

    def _new(self) -> Note:
        self._check_wanted()
        records = self._seen or self._look()
        told = prepare.job_json(self._site, self._ask)
        # With a `job.json` this job may have been submitted: the update may be its own.
        anew = not self._notes.job.exists()
        if isinstance(self._ask, Submit) and self._ask.number > 1 and anew:
            update = self._files.mailbox.update(self._ask.order.assignment)
            _set_aside(update, self._ask.number)
        note = self._to_allocation(records, told) or self._to_queue(records, told)
        write_json(self._notes.submitted, note.to_json())
        return note

    def _check_wanted(self) -> None:
        """Refuse a request that was overtaken by the word that it is not wanted."""
        refuse = read_json(self._notes.refuse) or {}
        seconds = float(refuse.get("until") or 0.0) - time.time()
        if seconds > 0:
            raise PolicyError(
                f"{self._key} of the run {self._ask.run} was cancelled before this "
                "request to submit it came.",
                hint=f"If it is wanted again, it is submitted in {seconds:.0f} s.",
                transient=True,
            )

    def _to_allocation(self, records: Records, told: dict[str, Any]) -> Note | None:
        if not isinstance(self._ask, Submit):
            return None
        kind = self._ask.order.kind
        shape, there = handover.Shape.of(told), handover.allocations(records)
        if handover.choose(kind, shape, there) is None:
            return None
        self._write(told)
        order = Handover(self._key, self._notes.job, prepare.digest(told))
        host = handover.hand_over(records, kind, told, order)
        return None if host is None else Note(host.job.id, host.key, self._nonce)

    def _to_queue(self, records: Records, told: dict[str, Any]) -> Note:
        policy.check_queue(self._site, self._ask, records.names_alive())
        script = self._desk.scheduler.render(prepare.job_spec(self._site, self._ask))
        self._write(told)
        write_text(self._notes.script, script, mode=0o700)
        try:
            job = self._desk.batch.submit(self._notes.script)
        except SchedulerError as error:
            job = self._accepted_anyway(error)
        return Note(job, "", self._nonce)

    def _accepted_anyway(self, error: SchedulerError) -> str:
        """Return the id of a job that was accepted though its submission failed.

        The answer may have been late, or not understood.

        Raises:
            SchedulerError: `error`, when there is no such job.
        """
        try:
            named = self._look().named(self._key)
        except SchedulerError as worse:
            log.warning("%s; and then: %s", error.message, worse.message)
            raise error from worse
        if named is None or named.state.final:
            raise error
        return named.id

    def _write(self, told: dict[str, Any]) -> None:
        self._files.box(self._key).path.mkdir(parents=True, exist_ok=True)
        self._notes.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(self._notes.job, told)

    def _look(self) -> Records:
        self._seen = Records(self._files, self._desk.watch.fresh())
        return self._seen


def own_folder(path: Path) -> None:
    """Make the facility's own folder, or check that nobody else can write there.

    Raises:
        FacilityError: Somebody else can, or it is no folder.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    wrong = not_our_own(path)
    if wrong:
        raise FacilityError(wrong[0], hint=wrong[1])


def not_our_own(path: Path) -> tuple[str, str] | None:
    """Return what is wrong with the facility's own folder, and what to do; or None."""
    info = path.stat()
    if info.st_uid != os.geteuid():
        return (
            f"The folder `state` ({path}) belongs to another user.",
            "Name a folder of your own in `state` of site.yaml.",
        )
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return (
            f"Other users can write into the folder `state` ({path}), and so could "
            "tell jobs what to run.",
            f"Call: chmod go-w {path}",
        )
    return None


def _split(ask: Submit | Place) -> tuple[str, int]:
    return prepare.assignment_of(ask), ask.number


def _check_order(site: SiteSpec, order: Order) -> None:
    size = len(json.dumps(prepare.order_json(order)))
    if size > ORDER_LIMIT:
        raise PolicyError(
            f"The order {order.assignment} is too large: {size} bytes.",
            hint=f"{site.name} takes {ORDER_LIMIT} at most.",
        )
    known = plugins.names(plugins.TRAINERS)
    if order.model.trainer not in known:
        raise PolicyError(
            f"{site.name} has no trainer {order.model.trainer!r}.",
            hint=f"Installed there: {', '.join(known)}.",
        )


def _write_order(site: SiteSpec, mailbox: Mailbox, order: Order) -> None:
    path = mailbox.order(order.assignment)
    new, old = prepare.order_json(order), small_json(mailbox.path, path)
    if old is None:
        write_json(path, new)
    elif {**new, **old} != new:  # an older Hansa's order has fewer keys
        raise PolicyError(
            f"{site.name} has another order {order.assignment} of the run "
            f"{order.run} already; orders never change.",
            hint="Use another run id, or remove the old run's mailbox there.",
        )


def _check_control(mailbox: Mailbox, order: Order) -> None:
    """Refuse an order whose stored state is reached through a link out of the mailbox.

    Whether it is there is for the worker to say: it may still be on its way.
    """
    if order.control:
        inside(mailbox.path, mailbox.state(order.control))


def _set_aside(update: Path, number: int) -> None:
    """Make room for job `number`: what an earlier job delivered was not accepted."""
    if update.is_dir():
        update.replace(update.with_name(f".refused-{update.name}.{number}"))
        fsync_dir(update.parent)
