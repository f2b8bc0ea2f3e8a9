"""A queue of files for jobs that run inside of a block: what `block` submits to.

::

    python -m hansa.scheduler.block_queue submit --dir DIR SCRIPT
    python -m hansa.scheduler.block_queue cancel --dir DIR ID...
    python -m hansa.scheduler.block_queue list   --dir DIR --stale SECONDS

A login node writes and reads it; a runner on a compute node (`block_run`) takes one job
and runs it. Nothing is resident and nothing is locked: what must happen once is a file
that is made once (`os.link`), which parallel file systems do atomically between nodes.
::

    DIR/<number>/       one job; it appears with its first two files, by one rename
        job.json        what it asks for
        script.sh       what is run
        turn.json       made once: by the runner that took it, or by who cancelled it
        beat            touched by the runner as long as the job runs
        cancel.json     the wish that a job that runs comes to an end
        end.json        made once: how it ended

A job whose beat is too old has lost its block: whoever lists the queue notes its end,
and a runner that was only held up sees that and ends the job.

Only the standard library, and little of it: a poll should take milliseconds.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

SCHEMA = 1
STALE_S = 120.0
"""A job whose beat is older than this is lost, unless the driver says otherwise."""
KEEP_S = 86_400.0
"""Ended jobs are shown for a day."""

_THERE = (errno.EEXIST, errno.ENOTEMPTY)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


class QueueError(Exception):
    """The queue refuses; the text says why."""


class Record(TypedDict):
    """One job as the queue shows it; times are unix seconds, durations seconds."""

    id: str
    name: str
    state: str
    nodes: int
    limit_s: float
    submitted: float
    started: float | None
    ended: float | None
    exit_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job asks for, from the ``#HANSA key=value`` lines of its script.

    Attributes:
        name: Its name.
        nodes: Nodes.
        time_s: Walltime in seconds.
        warning_s: SIGUSR1 comes so many seconds before its end; 0: never.
        directory: Where it runs.
        log: File for what it prints.
        submitted: When it was submitted, in unix seconds.
    """

    name: str
    nodes: int
    time_s: float
    warning_s: float
    directory: str
    log: str
    submitted: float


@dataclass(frozen=True, slots=True)
class Entry:
    """The files of one job.

    Args:
        path: Its directory.
    """

    path: Path

    @property
    def id(self) -> str:
        """The job's number in the queue."""
        return self.path.name

    @property
    def script(self) -> Path:
        """What is run."""
        return self.path / "script.sh"

    @property
    def turn(self) -> Path:
        """Who took the job, or that it was cancelled before anybody did."""
        return self.path / "turn.json"

    @property
    def beat(self) -> Path:
        """The runner's sign of life."""
        return self.path / "beat"

    @property
    def cancel(self) -> Path:
        """The wish that the job comes to an end."""
        return self.path / "cancel.json"

    @property
    def end(self) -> Path:
        """How the job ended."""
        return self.path / "end.json"

    def names(self) -> frozenset[str]:
        """Return the names of the files that are there; none when it is gone.

        The directory is read: network file systems may remember for a minute that a
        name was missing, but look anew when a directory is opened.
        """
        try:
            return frozenset(os.listdir(self.path))  # noqa: PTH208 - names are wanted
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    def asked(self) -> Asked:
        """Return what the job asks for.

        Raises:
            QueueError: The note is damaged, or there is none.
        """
        path = self.path / "job.json"
        try:
            return Asked(**{key: read(path)[key] for key in Asked.__slots__})
        except KeyError as error:
            raise QueueError(f"{path} lacks {error}") from error

    def beaten(self) -> float:
        """Return when the runner showed last that it lives, by the file system.

        The file is opened, as network file systems may show an old time otherwise.
        """
        times = [0.0]
        for path in (self.turn, self.beat):
            with suppress(FileNotFoundError):
                handle = os.open(path, os.O_RDONLY)
                times.append(os.fstat(handle).st_mtime)
                os.close(handle)
        return max(times)


class Store:
    """The files of one queue.

    Args:
        directory: Where they lie; made by the first submission.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def submit(self, script: Path) -> str:
        """Put a script into the queue and return the job's id.

        Args:
            script: Holds ``#HANSA key=value`` lines: name, nodes, time, directory,
                log, and optionally warning. A copy is kept.

        Raises:
            QueueError: A line is missing or wrong.
        """
        text = script.read_text(encoding="utf-8")
        asked = _asked(script, text)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget()
        new = self.directory / f".new.{os.getpid()}.{os.urandom(4).hex()}"
        new.mkdir(mode=0o700)
        said = {key: getattr(asked, key) for key in Asked.__slots__}
        write(new / "job.json", json.dumps({"schema": SCHEMA, **said}))
        write(new / "script.sh", text)
        number = max((int(entry.id) for entry in self.entries()), default=0) + 1
        while not _renamed(new, self.directory / str(number)):
            number += 1
        sync(self.directory)
        return str(number)

    def cancel(self, ids: list[str]) -> None:
        """Cancel jobs; those that are over or unknown are left alone.

        A job that waits never runs after this; of one that runs the runner sees it.
        """
        for entry in self.entries():
            if entry.id not in ids or "end.json" in entry.names():
                continue
            now = time.time()
            if not once(entry.turn, {"cancelled": now}) and not _cancelled(entry):
                once(entry.cancel, {"at": now})

    def records(self, stale_s: float = STALE_S) -> list[Record]:
        """Return all jobs, oldest first; notes the end of those that are lost.

        Args:
            stale_s: A beat that is older than this is none.
        """
        entries = list(self.entries())
        now = self._now() if entries else 0.0
        found = (_seen(entry, now, stale_s) for entry in entries)
        return [record for record in found if record is not None]

    def record(self, ident: str, stale_s: float = STALE_S) -> Record | None:
        """Return one job, or None when there is none of this id."""
        entry = self.entry(ident)
        return None if entry is None else _shown(entry, self._now(), stale_s)

    def entry(self, ident: str) -> Entry | None:
        """Return the files of a job, or None when there is none of this id."""
        return next((entry for entry in self.entries() if entry.id == ident), None)

    def entries(self) -> Iterator[Entry]:
        """Yield the jobs' files, oldest first."""
        try:
            names = os.listdir(self.directory)  # noqa: PTH208 - names are wanted
        except FileNotFoundError:
            return
        numbers = (name for name in names if name.isascii() and name.isdecimal())
        for name in sorted(numbers, key=int):
            yield Entry(self.directory / name)

    def _now(self) -> float:
        """Return the time as this file system notes it, which beats are compared to."""
        clock = self.directory / ".clock"
        try:
            clock.touch(mode=0o600)
            return clock.stat().st_mtime
        except OSError:  # a full disk, a folder that is only read here
            return time.time()

    def _forget(self) -> None:
        """Drop jobs that ended long ago; the newest stays, so that none has its id."""
        oldest = time.time() - KEEP_S
        for entry in list(self.entries())[:-1]:
            try:
                record = _shown(entry, 0.0, STALE_S)
            except QueueError:
                continue
            if record and record["ended"] is not None and record["ended"] < oldest:
                shutil.rmtree(entry.path, ignore_errors=True)


# --- small files ----------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    """Write a new file durably."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def once(path: Path, data: dict[str, Any]) -> bool:
    """Make a file with its whole content, unless somebody has made it before.

    Args:
        path: The file.
        data: What it says.

    Returns:
        Whether this call has made it.

    Raises:
        QueueError: The file system has no hard links.
        OSError: The directory can't be written, or is gone.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write(aside, json.dumps({"schema": SCHEMA, **data}))
        os.link(aside, path)
    except FileExistsError:
        # Over NFS an answer may be lost and the call repeated: count the names.
        return aside.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise QueueError(
            f"{path} can't be made: its file system has no hard links; name a folder "
            "on another one in `state` of site.yaml"
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()
    sync(path.parent)
    return True


def read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty when there is no file.

    Raises:
        QueueError: It is damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise QueueError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise QueueError(f"{path} is damaged, or of another version of hansa")
    return data


def sync(directory: Path) -> None:
    """Make names in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _renamed(new: Path, path: Path) -> bool:
    try:
        new.rename(path)
    except OSError as error:
        if error.errno not in _THERE:
            raise
        return False
    return True


# --- how a job stands -----------------------------------------------------------------


def _seen(entry: Entry, now: float, stale_s: float) -> Record | None:
    """Return a job's record; one whose files are damaged must not hide the others."""
    try:
        return _shown(entry, now, stale_s)
    except QueueError as error:
        return {
            "id": entry.id,
            "name": "",
            "state": "UNKNOWN",
            "nodes": 1,
            "limit_s": 0.0,
            "submitted": 0.0,
            "started": None,
            "ended": None,
            "exit_code": None,
            "reason": str(error),
        }


def _shown(entry: Entry, now: float, stale_s: float) -> Record | None:
    """Return a job's record; None when it was removed meanwhile."""
    names = entry.names()
    if not names:
        return None
    asked, turn = entry.asked(), read(entry.turn)
    if turn and "cancelled" not in turn and "end.json" not in names:
        last = entry.beaten()
        if now - last > stale_s:
            once(entry.end, _lost(turn, last, names, stale_s))
    end = read(entry.end)
    state = end.get("state") or ("RUNNING" if turn else "QUEUED")
    record: Record = {
        "id": entry.id,
        "name": asked.name,
        "state": state,
        "nodes": asked.nodes,
        "limit_s": turn.get("limit_s", asked.time_s),
        "submitted": asked.submitted,
        "started": turn.get("started"),
        "ended": end.get("ended"),
        "exit_code": end.get("exit_code"),
        "reason": end.get("reason", ""),
    }
    if "cancelled" in turn:
        record["state"], record["ended"] = "CANCELLED", turn["cancelled"]
        record["reason"] = "cancelled while waiting"
    return record


def _lost(
    turn: dict[str, Any], last: float, names: frozenset[str], stale_s: float
) -> dict[str, Any]:
    cancelled = "cancel.json" in names
    return {
        "state": "CANCELLED" if cancelled else "NODE_FAIL",
        "ended": max(last, turn.get("started", last)),
        "exit_code": None,
        "reason": f"no sign of life from {turn.get('host', 'its node')} "
        f"for {stale_s:g} s: its block is gone",
    }


def _cancelled(entry: Entry) -> bool:
    return "cancelled" in read(entry.turn)


def _asked(script: Path, text: str) -> Asked:
    said = dict(
        line.removeprefix("#HANSA ").strip().partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#HANSA ")
    )
    try:
        return Asked(
            name=said["name"],
            nodes=int(said["nodes"]),
            time_s=float(said["time"]),
            warning_s=float(said.get("warning", 0)),
            directory=said["directory"],
            log=said["log"],
            submitted=time.time(),
        )
    except (KeyError, ValueError) as error:
        raise QueueError(
            f"{script}: a #HANSA line is missing or wrong: {error}"
        ) from error


# --- the command line -----------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hansa.scheduler.block_queue")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("submit", "cancel", "list"):
        one = verbs.add_parser(verb)
        one.add_argument("--dir", type=Path, required=True)
        if verb == "submit":
            one.add_argument("script", type=Path)
        if verb == "cancel":
            one.add_argument("ids", nargs="*")
        if verb == "list":
            one.add_argument("--stale", type=float, default=STALE_S)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    asked = _parser().parse_args(arguments)
    store = Store(asked.dir.absolute())
    try:
        if asked.verb == "submit":
            sys.stdout.write(f"{store.submit(asked.script)}\n")
        elif asked.verb == "cancel":
            store.cancel(asked.ids)
        else:
            jobs = store.records(asked.stale)
            sys.stdout.write(json.dumps({"schema": SCHEMA, "jobs": jobs}))
    except (QueueError, OSError) as error:
        sys.stderr.write(f"block queue: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
