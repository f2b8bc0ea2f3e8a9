"""A small batch queue for one host: what the `local` driver submits to.

::

    python -m hansa.scheduler.local_queue submit --dir DIR [--slots N] SCRIPT
    python -m hansa.scheduler.local_queue cancel --dir DIR ID...
    python -m hansa.scheduler.local_queue list   --dir DIR

A daemon (`local_daemon`) is started when it is needed and leaves when there is nothing
to do. A job takes `nodes` of the slots. Jobs start in the order of submission, and none
overtakes; one with a synthetic wait gets in line when that is over. At walltime less
the warning a job gets SIGUSR1, at walltime SIGTERM, and SIGKILL after a grace.

Everything lies in DIR. `state.json` is replaced atomically and only under the lock
`state.lock`, by whoever changes it; so looking at the queue is just reading that file.

A job's environment is that of the submission which started the daemon, and
HANSA_JOB_ID.

Only the standard library, and little of it: a submission should take milliseconds.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypedDict

SCHEMA = 1
IDLE_S = 30.0
"""An idle daemon leaves after this long."""
KEEP_S = 86_400.0
"""Ended jobs are shown for a day."""
_SOURCE = Path(__file__).parents[2]
_DAEMON = """\
import sys
sys.path.append(sys.argv.pop(1))
from hansa.scheduler.local_daemon import main
sys.exit(main())
"""


class Job(TypedDict):
    """One job in `state.json`; times are unix seconds, durations seconds."""

    id: str
    name: str
    state: str
    submitted: float
    eligible: float
    started: float | None
    ended: float | None
    nodes: int
    time_s: float
    warning_s: float
    exit_code: int | None
    reason: str
    script: str
    directory: str
    log: str
    warned: bool
    ending: str
    kill_at: float | None


class State(TypedDict):
    """All of `state.json`."""

    schema: int
    slots: int
    next: int
    jobs: list[Job]


class QueueError(Exception):
    """The queue refuses; the text says why."""


class Store:
    """The files of one queue.

    Args:
        directory: Where they lie; made when missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "state.json"
        self.pid = directory / "daemon.pid"

    def load(self) -> State:
        """Return the state; that of a new queue when there is no file.

        Raises:
            QueueError: The file can't be understood.
        """
        try:
            state: State = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {"schema": SCHEMA, "slots": 1, "next": 1, "jobs": []}
        except ValueError as error:
            raise QueueError(f"{self.path} is damaged: {error}") from error
        if state.get("schema") != SCHEMA:
            raise QueueError(f"{self.path} was written by another version of hansa")
        return state

    @contextmanager
    def change(self) -> Iterator[State]:
        """Give the state for changing, alone; saved when the block ends well."""
        with locked(self.directory / "state.lock"):
            state = self.load()
            before = json.dumps(state)
            yield state
            after = json.dumps(state, indent=1)
            if json.loads(before) != state:
                write(self.path, after)

    def stamp(self) -> tuple[int, int] | None:
        """Return what changes whenever the state does."""
        try:
            info = self.path.stat()
        except FileNotFoundError:
            return None
        return info.st_ino, info.st_mtime_ns

    def run_file(self, job: Job) -> Path:
        """Return the file that a job's keeper locks; says which process the job is."""
        return self.directory / f"{job['id']}.run"

    def exit_file(self, job: Job) -> Path:
        """Return the file in which a job's keeper leaves the exit code."""
        return self.directory / f"{job['id']}.exit"

    def lock_daemon(self) -> int | None:
        """Return the held lock of the one daemon, or None when another holds it."""
        handle = os.open(self.directory / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(handle):
            return handle
        os.close(handle)
        return None


def write(path: Path, text: str) -> None:
    """Replace a file atomically and durably."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, waiting for it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file without waiting; tell whether that worked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def active(state: State) -> list[Job]:
    """Return the jobs that wait or run, oldest first."""
    return [job for job in state["jobs"] if job["state"] in ("QUEUED", "RUNNING")]


# --- what people and drivers call ---------------------------------------------------


def submit(store: Store, script: Path, slots: int | None, idle_s: float) -> str:
    """Put a script into the queue and return the job's id.

    Args:
        store: The queue.
        script: Holds ``#HANSA key=value`` lines: name, nodes, time, and optionally
            warning, wait (seconds), log, directory.
        slots: New number of slots; None leaves it. While a job waits or runs there
            are at least as many as it takes, so that none can get stuck when sites
            that share the queue disagree.
        idle_s: An idle daemon leaves after this long.

    Raises:
        QueueError: A line is missing or wrong, or the job could never start.
    """
    store.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    job = _job(script.resolve())
    with store.change() as state:
        slots = slots or state["slots"]
        if job["nodes"] > slots:
            raise QueueError(f"{job['name']} asks for {job['nodes']} slots of {slots}")
        state["slots"] = max([slots, *(other["nodes"] for other in active(state))])
        job["id"] = str(state["next"])
        state["next"] += 1
        state["jobs"].append(job)
        forget(store, state)
    ensure_daemon(store, idle_s)
    return job["id"]


def cancel(store: Store, ids: list[str]) -> None:
    """Cancel jobs; those that are over or unknown are left alone."""
    if not store.path.exists():
        return
    with store.change() as state:
        for job in active(state):
            if job["id"] not in ids:
                continue
            if job["state"] == "QUEUED":
                finish(job, "CANCELLED", None, time.time(), "cancelled while waiting")
            else:
                job["ending"] = job["ending"] or "CANCELLED"
    revive(store)


def listing(store: Store) -> str:
    """Return the text of `state.json`, after reviving a daemon that died."""
    revive(store)
    return store.path.read_text() if store.path.exists() else ""


def revive(store: Store) -> None:
    """Start a daemon if jobs need one and none is there."""
    if not store.path.exists():
        return
    with locked(store.directory / "state.lock"):
        needed = bool(active(store.load()))
        if not needed:
            _sweep(store)
    if needed:
        ensure_daemon(store, IDLE_S)


def _sweep(store: Store) -> None:
    """Remove the pid file of a daemon that died when there was nothing to do.

    Called under the lock of the state, so that no submission takes the lock that is
    held here for a daemon's.
    """
    lock = store.lock_daemon()
    if lock is not None:
        store.pid.unlink(missing_ok=True)
        os.close(lock)


def _job(script: Path) -> Job:
    lines = script.read_text(encoding="utf-8").splitlines()
    said = dict(
        line.removeprefix("#HANSA ").strip().partition("=")[::2]
        for line in lines
        if line.startswith("#HANSA ")
    )
    now = time.time()
    try:
        return {
            "id": "",
            "name": said["name"],
            "state": "QUEUED",
            "submitted": now,
            "eligible": now + float(said.get("wait", 0)),
            "started": None,
            "ended": None,
            "nodes": int(said["nodes"]),
            "time_s": float(said["time"]),
            "warning_s": float(said.get("warning", 0)),
            "exit_code": None,
            "reason": "",
            "script": str(script),
            "directory": said.get("directory", str(script.parent)),
            "log": said.get("log", f"{script}.log"),
            "warned": False,
            "ending": "",
            "kill_at": None,
        }
    except (KeyError, ValueError) as error:
        raise QueueError(
            f"{script}: a #HANSA line is missing or wrong: {error}"
        ) from error


def finish(
    job: Job, state: str, exit_code: int | None, ended: float, reason: str
) -> None:
    """Note the end of a job."""
    job["state"], job["reason"] = state, reason
    job["exit_code"], job["ended"] = exit_code, ended


def forget(store: Store, state: State) -> None:
    """Drop jobs that ended long ago, and their files."""
    oldest = time.time() - KEEP_S
    old = [job for job in state["jobs"] if (job["ended"] or time.time()) < oldest]
    for job in old:
        state["jobs"].remove(job)
        store.run_file(job).unlink(missing_ok=True)
        store.exit_file(job).unlink(missing_ok=True)


# --- having a daemon ------------------------------------------------------------------


def ensure_daemon(store: Store, idle_s: float) -> None:
    """Start a daemon unless there is one.

    The daemon inherits the lock that was taken here, so there is never a moment
    without an owner and never a second daemon.
    """
    lock = store.lock_daemon()
    if lock is None:
        return
    child = os.fork()
    if child == 0:
        _detach(store, lock, idle_s)
    # Noted here too, so that one that dies at once is missed.
    write(store.pid, str(child))
    os.close(lock)


def _detach(store: Store, lock: int, idle_s: float) -> NoReturn:
    try:
        os.setsid()
        os.set_inheritable(lock, True)
        null = os.open(os.devnull, os.O_RDWR)
        notes = os.open(
            store.directory / "daemon.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o600,
        )
        for source, target in ((null, 0), (notes, 1), (notes, 2)):
            os.dup2(source, target)
        # Without site-packages, which take long to look through: say where hansa is.
        python = [sys.executable, "-I", "-S", "-c", _DAEMON, str(_SOURCE)]
        options = ["--idle", str(idle_s), "--lock-fd", str(lock)]
        os.execv(  # noqa: S606 - our own interpreter and program
            sys.executable, [*python, "--dir", str(store.directory), *options]
        )
    finally:
        os._exit(127)


# --- the command line -----------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hansa.scheduler.local_queue")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("submit", "cancel", "list"):
        one = verbs.add_parser(verb)
        one.add_argument("--dir", type=Path, required=True)
        if verb == "submit":
            one.add_argument("--idle", type=float, default=IDLE_S)
            one.add_argument("--slots", type=int)
            one.add_argument("script", type=Path)
        if verb == "cancel":
            one.add_argument("ids", nargs="*")
    return parser


def _carry_out(asked: argparse.Namespace) -> None:
    store = Store(asked.dir.absolute())
    if asked.verb == "submit":
        job = submit(store, asked.script, asked.slots, asked.idle)
        sys.stdout.write(f"{job}\n")
    elif asked.verb == "cancel":
        cancel(store, asked.ids)
    else:
        sys.stdout.write(listing(store))


def exit_code(program: Callable[[], None]) -> int:
    """Run a program of the queue; return its exit code, and say why it is not 0."""
    try:
        program()
    except (QueueError, OSError) as error:
        sys.stderr.write(f"local queue: {error}\n")
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    asked = _parser().parse_args(arguments)
    return exit_code(lambda: _carry_out(asked))


if __name__ == "__main__":
    sys.exit(main())
