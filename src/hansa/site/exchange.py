"""The site agent's part in an exchange with a bucket: policy, and a process for it.

A request returns at once: the bytes are carried by a process of its own
(`exchange_worker`), which is started when it is needed, found again when the request
is repeated, and started anew where it died. The server hands it signed URLs; the hosts
that they may lead to are on the facility's own list, `exchange.hosts` in site.yaml.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hansa.core.errors import FacilityError, PolicyError, TransferError, UsageError
from hansa.core.files import total_bytes
from hansa.mailbox.paths import Mailbox
from hansa.mailbox.state import State
from hansa.mover import landing, s3_directory
from hansa.mover.base import MANIFEST
from hansa.mover.s3_directory import cut
from hansa.site.exchange_http import LineFault, Service, is_loopback
from hansa.site.exchange_notes import MOVING, Notes, Status, Task, Tries, failed
from hansa.site.exchange_request import Exchange, Reach
from hansa.site.reach import alone, inside
from hansa.spec.site import SiteSpec

_DEATHS = 5
_OLD_S = 86_400.0
_SECRETS = ("AWS_", "GLOBUS_", "HANSA_GLOBUS_")
# In the background of a shell: nobody has to wait for it, and it outlives the agent.
_START = '"$@" </dev/null >>"$0" 2>&1 &'


def reach(site: SiteSpec, ask: Reach) -> dict[str, Any]:
    """Say whether a host may be contacted, and whether it answers.

    Raises:
        PolicyError: It is not on the list.
        FacilityError: It does not answer.
    """
    check_origin(site, ask.origin)
    try:
        return {"status": Service(ask.origin).reach()}
    except LineFault as fault:
        raise FacilityError(
            f"{site.name} does not reach the bucket: {fault}.",
            hint="Can its login nodes connect to that host? They may need a proxy "
            "(https_proxy).",
        ) from None


def answer(site: SiteSpec, ask: Exchange) -> dict[str, Any]:
    """Begin an exchange or say how far it is; see `Exchange`.

    Raises:
        PolicyError: The host is not on the list, or the place not in the mailbox.
        TransferError: The directory is not there, or its process dies again and again.
    """
    check_origin(site, ask.origin)
    directory = _directory(site, ask)
    files = ask.records()
    landing.check_names(s3_directory.data_files(files), directory)
    if ask.dry_run:
        shown = s3_directory.manifest_record(directory) if ask.op == "deliver" else None
        return {"manifest": None if shown is None else asdict(shown)}
    if MANIFEST not in files:
        raise UsageError(f"The request {ask.op!r} promises no manifest.")
    task = Task(
        op=ask.op,
        directory=str(directory),
        origin=ask.origin,
        part_bytes=ask.part_bytes,
        files=files,
    )
    folder = State(site.state, ask.run).path / "exchange"
    notes = Notes(folder / task.name)
    notes.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(notes.asking):
        status = _go_on(notes, task, ask)
    return status.shown(total_bytes(files))


def check_origin(site: SiteSpec, origin: str) -> None:
    """Refuse a host that the facility has not listed.

    Raises:
        PolicyError: Says what is allowed.
    """
    found = urlsplit(origin)
    hosts = site.exchange.hosts
    allowed = found.netloc in hosts
    if allowed and (found.scheme == "https" or is_loopback(origin)):
        return
    what = f"{found.scheme} to {found.netloc}" if allowed else f"{found.netloc!r}"
    listed = ", ".join(hosts) or "no host"
    raise PolicyError(
        f"{site.name} does not allow an exchange with {what}; its site.yaml says so in "
        "`exchange.hosts`.",
        hint=f"Allowed: {listed}, over https. The facility's owner can change that.",
    )


def _directory(site: SiteSpec, ask: Exchange) -> Path:
    mailbox = Mailbox(site.mailbox, ask.run)
    path = mailbox.path.joinpath(*landing.mailbox_parts(ask.place))
    inside(site.mailbox, path)
    return path


def _go_on(notes: Notes, task: Task, ask: Exchange) -> Status:
    lock = notes.lock()  # first: what the process tells in its end must be seen
    if lock is None:
        return _wait(notes, ask)
    try:
        status, tries = notes.status(), notes.tries()
        known = ask.ticket in tries.tickets
        if known and status.final:
            notes.forget_urls()  # they may have come too late for it
            return status
        deaths = 0
        if known and status.state == MOVING:  # it died
            deaths = 1 if status.moved > tries.moved else tries.deaths + 1
        if deaths > _DEATHS:
            return _given_up(notes, status)
        begun = _left_off(task, ask, status, known)
        notes.note_tries(Tries((ask.ticket,), deaths, begun.moved))
        notes.supply(_urls(ask), ask.valid)
        return _begin(notes, task, begun, lock)
    finally:
        os.close(lock)  # the process holds it too


def _wait(notes: Notes, ask: Exchange) -> Status:
    """Supply the process that is at work, and say how far it is."""
    status, tries = notes.status(), notes.tries()
    known = ask.ticket in tries.tickets
    if status.final and known:
        return status
    if status.final:
        # It ended before this try began, and is just leaving: soon there is another.
        return replace(status, state=MOVING, wants=(), error=None, damaged=())
    if not known:
        notes.note_tries(replace(tries, tickets=(*tries.tickets, ask.ticket)))
    notes.supply(_urls(ask), ask.valid)
    return status


def _urls(ask: Exchange) -> dict[int, str]:
    return {int(number): target for number, target in ask.urls.items()}


def _left_off(task: Task, ask: Exchange, status: Status, known: bool) -> Status:
    """Return where to go on: what is there is not brought again."""
    have = dict(status.have) if known or task.op == "fetch" else {}
    lengths = {one.number: one.length for one in cut(task.files, task.part_bytes)}
    kept = {str(n): lengths[n] for n in ask.kept if n in lengths}
    return Status(
        state=MOVING,
        have={**have, **kept},
        moved=status.moved if known else 0,
        host=socket.gethostname(),
    )


def _begin(notes: Notes, task: Task, status: Status, lock: int) -> Status:
    _forget_old(notes)
    notes.begin(task)
    notes.show(status)
    worker = [sys.executable, "-P", "-m", "hansa.site.exchange_worker"]
    command = ["/bin/sh", "-c", _START, str(notes.log), *worker, str(notes.path)]
    os.close(os.open(notes.log, os.O_WRONLY | os.O_CREAT, 0o600))
    subprocess.run(
        command,
        check=True,
        cwd=notes.path,
        env=_environment(os.environ),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock,),
    )
    return status


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what the process needs; it has no business with credentials."""
    return {
        name: value
        for name, value in variables.items()
        if not name.startswith(_SECRETS)
    }


def _given_up(notes: Notes, status: Status) -> Status:
    error = TransferError(
        f"The process that exchanges files with the bucket died {_DEATHS + 1} times, "
        "and brought nothing over.",
        hint=f"Look into {notes.log} at the facility.",
    )
    status = replace(status, **failed(error))
    notes.forget_urls()
    notes.show(status)
    return status


def _forget_old(notes: Notes) -> None:
    """Remove the notes of exchanges that nobody has asked about for a day."""
    for folder in notes.path.parent.iterdir():
        with suppress(FileNotFoundError):  # another site agent may be faster
            old = folder.stat().st_mtime < time.time() - _OLD_S
            lock = Notes(folder).lock() if old and folder != notes.path else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
