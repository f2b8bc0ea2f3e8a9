"""The facility's own folder about one exchange with a bucket.

::

    <state>/<run>/exchange/<name>/
        task.json      what is to be brought where
        urls.json      signed URLs; secrets, removed in the end
        status.json    how far it is; written by the process that does it
        tries.json     the server's tries that hear how it ended, and their failures
        lock           held by the process as long as it lives
        log.txt        where its code failed, if it did

The folder is its owner's alone (0700). Its name comes from what is to be brought, so a
request that comes twice finds the same process.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hansa.core.errors import HansaError, IntegrityError
from hansa.core.files import FileRecord, FileRecords
from hansa.mailbox.files import read_json, show_json, write_text
from hansa.scheduler.local_queue import try_lock

MOVING, DONE, FAILED, LEFT = "moving", "done", "failed", "left"
"""States of an exchange; `LEFT`: its process waited in vain for URLs."""
_FRESH_S = 15.0
"""A process on another login node writes its status far more often than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be brought where.

    Attributes:
        op: ``fetch`` or ``deliver``.
        directory: The directory in the mailbox.
        origin: Scheme, host and port of the service.
        part_bytes: Size of one object.
        files: All files, the manifest among them.
    """

    op: str
    directory: str
    origin: str
    part_bytes: int
    files: FileRecords

    @property
    def name(self) -> str:
        """Return the same word for the same task, and another for another."""
        text = json.dumps(asdict(replace(self, files=dict(self.files))), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Task:
        """Read a task as it is noted."""
        files = {name: FileRecord(**one) for name, one in data["files"].items()}
        return cls(**{**data, "files": files})


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How far an exchange is.

    Attributes:
        state: One of the four states; empty: nothing was begun.
        have: Bytes of each piece that has begun, by its number.
        moved: Bytes that came over the line in this try.
        ready: So many pieces from the first on are complete.
        wants: Pieces that need a fresh URL.
        faults: Troubles of the line so far, all mended.
        error: What went wrong, as JSON.
        damaged: Files of which an object is missing or damaged.
        host: Where the process runs.
    """

    state: str = ""
    have: Mapping[str, int]
    moved: int = 0
    ready: int = 0
    wants: tuple[int, ...] = ()
    faults: int = 0
    error: Mapping[str, object] | None = None
    damaged: tuple[str, ...] = ()
    host: str = ""

    @property
    def final(self) -> bool:
        """Tell whether it is over."""
        return self.state in (DONE, FAILED)

    def shown(self, total: int) -> dict[str, Any]:
        """Return what the server is told.

        Args:
            total: Bytes of the whole directory.
        """
        told = asdict(self)
        del told["have"], told["host"]
        there = total if self.state == DONE else sum(self.have.values())
        return {**told, "bytes": there}


NOTHING = Status(have={})


@dataclass(frozen=True, slots=True)
class Tries:
    """What was asked.

    Attributes:
        tickets: The server's tries that hear how it ends.
        deaths: So often the process died since it last brought anything over.
        moved: Bytes that it had brought over when it died.
    """

    tickets: tuple[str, ...] = ()
    deaths: int = 0
    moved: int = 0


class Notes:
    """The folder; the site agent and the process write different files of it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    @property
    def log(self) -> Path:
        """Output of the process."""
        return self.path / "log.txt"

    @property
    def asking(self) -> Path:
        """Lock of the site agents that ask about it."""
        return self.path / ".asking.lock"

    def status(self) -> Status:
        """Return how far it is; an unreadable file counts as none."""
        try:
            data = read_json(self.path / "status.json")
            return NOTHING if data is None else _status(data)
        except (IntegrityError, KeyError, TypeError):
            return NOTHING

    def show(self, status: Status) -> None:
        """Note how far it is."""
        show_json(self.path / "status.json", asdict(status))

    def begin(self, task: Task) -> None:
        """Note what is to be done."""
        text = json.dumps(asdict(replace(task, files=dict(task.files))))
        write_text(self.path / "task.json", text, mode=0o600)

    def task(self) -> Task:
        """Return what is to be done.

        Raises:
            IntegrityError: Nothing is noted.
        """
        data = read_json(self.path / "task.json")
        if data is None:
            raise IntegrityError(f"{self.path} holds no task.")
        return Task.of(data)

    def tries(self) -> Tries:
        """Return what was asked, and how often the process died over it."""
        data = read_json(self.path / "tries.json") or {}
        return Tries(**{**data, "tickets": tuple(data.get("tickets", ()))})

    def note_tries(self, tries: Tries) -> None:
        """Note what was asked."""
        write_text(self.path / "tries.json", json.dumps(asdict(tries)), mode=0o600)

    def supply(self, targets: Mapping[int, str], valid: float) -> None:
        """Hand URLs to the process; those that it has stay, until they end.

        Args:
            targets: Path and query by number of the piece.
            valid: Seconds for which they are good.
        """
        if not targets:
            return
        until = time.time() + valid - min(60.0, valid / 3)
        urls = {**self._urls(), **{n: (url, until) for n, url in targets.items()}}
        good = {str(n): one for n, one in urls.items() if one[1] > time.time()}
        write_text(self.path / "urls.json", json.dumps(good), mode=0o600)

    def fresh_urls(self) -> dict[int, tuple[str, float]] | None:
        """Return the URLs and their ends, if there are others than at the last call."""
        try:
            info = (self.path / "urls.json").stat()
        except FileNotFoundError:
            return None
        stamp = (info.st_ino, info.st_mtime_ns)
        if stamp == self._seen:
            return None
        self._seen = stamp
        return self._urls()

    def forget_urls(self) -> None:
        """Remove the URLs."""
        (self.path / "urls.json").unlink(missing_ok=True)

    def _urls(self) -> dict[int, tuple[str, float]]:
        data = read_json(self.path / "urls.json") or {}
        return {int(n): (str(url), float(until)) for n, (url, until) in data.items()}

    def lock(self) -> int | None:
        """Return the held lock of the one process, or None while that lives.

        A lock may hold on one login node only, or not at all; then the age of its
        status tells whether it lives.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            free, here = try_lock(handle), socket.gethostname()
        except OSError:
            free, here = True, ""
        if free and not self._lives_elsewhere(here):
            return handle
        os.close(handle)
        return None

    def _lives_elsewhere(self, here: str) -> bool:
        status = self.status()
        if status.state != MOVING or status.host == here:
            return False
        age = time.time() - (self.path / "status.json").stat().st_mtime
        return age < _FRESH_S


def _status(data: Mapping[str, Any]) -> Status:
    lists = {"wants": tuple(data["wants"]), "damaged": tuple(data["damaged"])}
    return Status(**{**data, **lists})


def failed(error: HansaError, damaged: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields of a status that say what went wrong."""
    return {
        "state": FAILED,
        "error": error.to_json(),
        "damaged": tuple(sorted(damaged)),
    }
