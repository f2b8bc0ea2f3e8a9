"""One writer per journal, also on file systems where locks don't work.

A lease is a small JSON file ``<path>.<number>`` that names the holder; the highest
number holds. Whoever wants the lease looks at the highest number n and, if its holder
is dead, creates n + 1 by a hard link, which exactly one of several contenders can do
(on NFS, Lustre and GPFS too). A holder that only seemed dead finds the higher number
at its next beat and stops. The number is the fencing number.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hansa.core.errors import JournalLocked

STALE_S: Final = 120.0
"""Seconds without a heartbeat after which a holder on another host counts as dead."""

BEAT_S: Final = 20.0
"""Seconds after which `Lease.ensure` renews the heartbeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: Name of the host.
        pid: Process id there.
        started: Start of the process in clock ticks since boot, 0 if unknown; tells
            a process from a later one with the same pid.
        heartbeat: Unix time of the last sign of life.
        token: Fencing number, from 1.
        nonce: Unique word of this lease.
        command: The command line, for people.
    """

    host: str
    pid: int
    started: int
    heartbeat: float
    token: int
    nonce: str
    command: str

    def is_alive(self, now: float) -> bool:
        """Tell whether the holder still works, as far as can be known from here.

        Args:
            now: Unix time.
        """
        if self.host == socket.gethostname() and self.started:
            return _process_start(self.pid) == self.started
        return now - self.heartbeat <= STALE_S


class Lease:
    """The right to write a journal; a context manager that gives it back.

    Use `Lease.acquire`; call `beat` (or `ensure`) at least every minute.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path = path
        self._holder = holder

    @property
    def holder(self) -> Holder:
        """What the lease file says."""
        return self._holder

    @classmethod
    def acquire(cls, path: Path, now: float | None = None) -> Self:
        """Take the lease, over a dead holder if need be.

        Args:
            path: Name of the lease, as ``runs/smol/journal.lease``.
            now: Unix time; None reads the clock.

        Raises:
            JournalLocked: Another process holds it and lives, or may live.
        """
        now = time.time() if now is None else now
        while True:
            newest = holder(path)
            if newest is not None and newest.is_alive(now):
                raise _locked(path, newest, now)
            mine = _myself(now, newest.token + 1 if newest else 1)
            if _create(path, mine) and _settle(path, mine):
                return cls(path, mine)

    def beat(self, now: float | None = None) -> None:
        """Renew the heartbeat.

        Args:
            now: Unix time; None reads the clock.

        Raises:
            JournalLocked: The lease was taken over; stop writing at once.
        """
        self._check()
        fresh = replace(self._holder, heartbeat=time.time() if now is None else now)
        own = _file(self._path, fresh.token)
        aside = _write_aside(self._path, fresh)
        aside.replace(own)
        self._holder = fresh
        self._check()

    def ensure(self, now: float | None = None) -> None:
        """`beat` if the last one is older than `BEAT_S`; cheap otherwise."""
        now = time.time() if now is None else now
        if abs(now - self._holder.heartbeat) >= BEAT_S:
            self.beat(now)

    def release(self) -> None:
        """Give the lease back; harmless if it was taken over."""
        newest = holder(self._path)
        if newest is not None and newest.nonce == self._holder.nonce:
            _file(self._path, self._holder.token).unlink(missing_ok=True)

    def _check(self) -> None:
        newest = holder(self._path)
        if newest is None or newest.nonce != self._holder.nonce:
            who = "someone" if newest is None else f"{newest.host} pid {newest.pid}"
            raise JournalLocked(
                f"The lease {self._path} was taken over by {who}.",
                hint="This process was silent for too long; the other one goes on.",
                transient=False,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def holder(path: Path) -> Holder | None:
    """Return who holds the lease `path`, dead or alive; None if it is free."""
    if not path.parent.is_dir():
        return None
    while True:
        numbers = _numbers(path)
        if not numbers:
            return None
        try:
            return _read(path, max(numbers))
        except FileNotFoundError:
            continue  # released since the listing


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _file(path: Path, token: int) -> Path:
    return path.with_name(f"{path.name}.{token}")


def _numbers(path: Path) -> list[int]:
    pattern = re.compile(re.escape(path.name) + r"\.([0-9]+)")
    found = (pattern.fullmatch(entry.name) for entry in path.parent.iterdir())
    return [int(match[1]) for match in found if match]


def _read(path: Path, token: int) -> Holder:
    file = _file(path, token)
    try:
        return Holder(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        # Only a damaged disk gets here; trust the file's age as of another host.
        return Holder(
            host="an unknown host",
            pid=0,
            started=0,
            heartbeat=file.stat().st_mtime,
            token=token,
            nonce="",
            command="",
        )


def _myself(now: float, token: int) -> Holder:
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_process_start(os.getpid()) or 0,
        heartbeat=now,
        token=token,
        nonce=uuid.uuid4().hex,
        command=" ".join(sys.argv)[:200],
    )


def _write_aside(path: Path, content: Holder) -> Path:
    aside = path.with_name(f".{path.name}.{content.nonce}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(asdict(content), file)
        file.flush()
        os.fsync(file.fileno())
    return aside


def _create(path: Path, mine: Holder) -> bool:
    """Create the file of my number, complete at once; False if another was faster."""
    aside = _write_aside(path, mine)
    try:
        os.link(aside, _file(path, mine.token))
    except FileExistsError:
        if aside.stat().st_nlink == 1:  # 2 when only NFS's answer got lost
            return False
    finally:
        aside.unlink()
    sync_directory(path.parent)
    return True


def _settle(path: Path, mine: Holder) -> bool:
    """Tell whether my new number is the highest, and remove the others' remains.

    It is not when, between my look and my link, others took and lost the lease and
    cleaned my number away.
    """
    numbers = _numbers(path)
    if max(numbers, default=0) > mine.token:
        _file(path, mine.token).unlink(missing_ok=True)
        return False
    for number in numbers:
        if number < mine.token:
            _file(path, number).unlink(missing_ok=True)
    return True


def _locked(path: Path, newest: Holder, now: float) -> JournalLocked:
    age = max(0.0, now - newest.heartbeat)
    return JournalLocked(
        f"{path} is held by process {newest.pid} on {newest.host} "
        f"(last heartbeat {age:.0f} s ago): {newest.command or 'unknown command'}.",
        hint="Stop that process first. A dead holder on this host is noticed at once, "
        f"one on another host after {STALE_S:.0f} s of silence.",
    )


def _process_start(pid: int) -> int | None:
    """Return when a process on this host began, in ticks since boot; None if dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # "pid (any name) state ppid ...": field 3 is the state, field 22 the start.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
