"""The daemon of the local queue: starts jobs, warns them, ends them, notes the end.

::

    python -m hansa.scheduler.local_daemon --dir DIR

Each job has a keeper: a fork of the daemon, in a session of its own, that holds a lock
on ``<id>.run`` as long as it lives and leaves the exit code in ``<id>.exit``. So jobs
survive the daemon, and the next daemon learns how they ended.

``<id>.run`` says which process the job is: its number, its start and the boot, since
numbers are used again. Nothing is sent to a process that is another one by now.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hansa.scheduler.local_queue import (
    IDLE_S,
    Job,
    QueueError,
    State,
    Store,
    active,
    exit_code,
    finish,
    locked,
    try_lock,
    write,
)

GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""
_BUSY_TICK_S = 0.05
_IDLE_TICK_S = 0.5
_CALM_S = 5.0
_ALIVE_CHECK_S = 1.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Daemon:
    """Starts jobs, warns and ends them, and notes how they ended.

    Args:
        store: The queue.
        idle_s: Leave after this long without a job.
    """

    def __init__(self, store: Store, idle_s: float) -> None:
        self.store = store
        self.idle_s = idle_s
        self._seen: tuple[int, int] | None = None
        self._running: list[Job] = []
        self._next = 0.0
        self._idle_since = time.monotonic()

    def run(self, lock: int) -> None:
        """Serve until the queue has been empty for long, or its directory is gone.

        Args:
            lock: The daemon's lock; given back when it leaves.
        """
        write(self.store.pid, str(os.getpid()))
        while self.store.directory.is_dir():
            _reap_keepers()
            if self._due():
                self._advance()
            if self._leave(lock):
                return
            calm = not self._next and self._idle_for() > _CALM_S
            time.sleep(_IDLE_TICK_S if calm else _BUSY_TICK_S)

    def _idle_for(self) -> float:
        return time.monotonic() - self._idle_since

    def _due(self) -> bool:
        return (
            self.store.stamp() != self._seen
            or bool(self._next and time.time() >= self._next)
            or any(self.store.exit_file(job).exists() for job in self._running)
        )

    def _advance(self) -> None:
        go: list[int] = []
        with self.store.change() as state:
            now = time.time()
            for job in active(state):
                if job["state"] == "RUNNING":
                    self._tend(job, now)
            go = self._start(state, now)
            self._plan(state, now)
        for handle in go:  # only now: the state says on disk that the job runs
            with suppress(BrokenPipeError):  # its keeper died; `_tend` will see
                os.write(handle, b"g")
            os.close(handle)
        self._seen = self.store.stamp()

    def _plan(self, state: State, now: float) -> None:
        """Note what runs and when to look again without being told."""
        jobs = active(state)
        self._running = [job for job in jobs if job["state"] == "RUNNING"]
        times = [job["eligible"] for job in jobs if job["eligible"] > now]
        for job in self._running:
            times += [now + _ALIVE_CHECK_S, *(due for due in _alarms(job) if due > now)]
        self._next = min(times, default=0.0)
        if jobs:
            self._idle_since = time.monotonic()

    def _tend(self, job: Job, now: float) -> None:
        if self._ended(job):
            return
        limit = (job["started"] or now) + job["time_s"]
        if not job["ending"] and now >= limit:
            job["ending"] = "TIMEOUT"
        if job["kill_at"] is not None and now >= job["kill_at"]:
            self._send(job, signal.SIGKILL)
        elif job["ending"] and job["kill_at"] is None:
            if self._send(job, signal.SIGTERM):
                job["kill_at"] = now + GRACE_S
        elif job["warning_s"] and not job["warned"] and now >= limit - job["warning_s"]:
            job["warned"] = self._send(job, signal.SIGUSR1)

    def _ended(self, job: Job) -> bool:
        """Note the end of a job that is over; tell whether it is."""
        alive = self._keeper_lives(job)  # asked first: it writes, then dies
        try:
            left = json.loads(self.store.exit_file(job).read_bytes())
        except FileNotFoundError:
            return not alive and self._lost(job)
        code = int(left["exit_code"])
        state = job["ending"] or ("DONE" if code == 0 else "FAILED")
        finish(job, state, code, float(left["ended"]), _reason(state, code, job))
        return True

    def _lost(self, job: Job) -> bool:
        if not _read(self.store.run_file(job)):
            # The daemon died before it let the job go: it has never started.
            job["state"], job["started"] = "QUEUED", None
        else:
            finish(job, "NODE_FAIL", None, time.time(), "its keeper was killed")
            self._kill_group(job, signal.SIGKILL)
        return True

    def _keeper_lives(self, job: Job) -> bool:
        try:
            handle = os.open(self.store.run_file(job), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(handle)
        finally:
            os.close(handle)

    def _send(self, job: Job, number: signal.Signals) -> bool:
        return self._keeper_lives(job) and self._kill_group(job, number)

    def _kill_group(self, job: Job, number: signal.Signals) -> bool:
        noted = _read(self.store.run_file(job))
        group = noted.partition(" ")[0]
        if not group.isdecimal() or noted != _identity(int(group)):
            return False  # gone; its number may be a stranger's by now
        try:
            os.killpg(int(group), number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _start(self, state: State, now: float) -> list[int]:
        jobs = active(state)
        free = state["slots"] - sum(
            job["nodes"] for job in jobs if job["state"] == "RUNNING"
        )
        line = [job for job in jobs if job["state"] == "QUEUED"]
        line = [job for job in line if job["eligible"] <= now]
        go: list[int] = []
        for job in sorted(line, key=lambda job: (job["eligible"], int(job["id"]))):
            if job["nodes"] > free:
                break
            free -= job["nodes"]
            job["state"], job["started"] = "RUNNING", now
            go.append(_fork_keeper(self.store, job))
        return go

    def _leave(self, lock: int) -> bool:
        if self._idle_for() < self.idle_s:
            return False
        with locked(self.store.directory / "state.lock"):
            # Under the lock of the state, so that no submission slips in between.
            if active(self.store.load()):
                return False
            self.store.pid.unlink(missing_ok=True)
            os.close(lock)
        return True


def _alarms(job: Job) -> list[float]:
    limit = (job["started"] or 0.0) + job["time_s"]
    return [limit - job["warning_s"], limit, job["kill_at"] or limit]


def _reason(state: str, code: int, job: Job) -> str:
    if state == "TIMEOUT":
        return f"walltime of {job['time_s']:g} s is over"
    if state == "CANCELLED":
        return "cancelled while running"
    if code < 0:
        return f"killed by signal {-code}"
    return f"exit code {code}" if code else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _identity(pid: int) -> str:
    """Return what tells a process from any other, now or later; empty if it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    start = words[19]  # field 22, in ticks since the boot
    return f"{pid} {start} {_read(_BOOT).strip()}"


def _reap_keepers() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# --- the keeper of one job ------------------------------------------------------------


def _fork_keeper(store: Store, job: Job) -> int:
    """Fork the keeper; it starts the job when a byte comes through what is returned.

    The keeper inherits the lock on its run file, so it is never seen without one.
    """
    store.exit_file(job).unlink(missing_ok=True)
    store.run_file(job).unlink(missing_ok=True)
    run = os.open(store.run_file(job), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(run, fcntl.LOCK_EX)
    gate, go = os.pipe()
    if os.fork() == 0:
        try:
            _close_all_but(gate, run)
            _keep(store, job, gate, run)
        except Exception:  # the last frame of this process: note it and go
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.close(gate)
    os.close(run)
    return go


def _close_all_but(*kept: int) -> None:
    low = 3
    for handle in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        if low < handle:  # an empty range would close everything
            os.closerange(low, handle)
        low = handle + 1


def _keep(store: Store, job: Job, gate: int, run: int) -> None:
    os.setsid()
    if os.read(gate, 1) != b"g":  # the daemon died before it had noted the start
        return
    child = os.fork()
    if child == 0:
        _become(job, run)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    # While the job is a zombie its number can't be reused: end what it left behind.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    write(
        store.exit_file(job),
        json.dumps({"exit_code": code, "ended": time.time()}),
    )


def _become(job: Job, run: int) -> NoReturn:
    try:
        os.setsid()
        # By the job itself: it never runs without being noted, and started twice.
        os.pwrite(run, _identity(os.getpid()).encode(), 0)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(job["directory"])
        os.environ["HANSA_JOB_ID"] = job["id"]
        os.execv("/bin/sh", ["/bin/sh", job["script"]])  # noqa: S606 - the job itself
    finally:
        os._exit(126)


# --- the program ----------------------------------------------------------------------


def _serve(store: Store, idle_s: float, lock: int | None) -> None:
    store.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = store.lock_daemon() if lock is None else lock
    if held is None:
        raise QueueError("a daemon is already there")
    os.set_inheritable(held, False)
    os.chdir(store.directory)  # `local` knows a daemon that lives by this
    Daemon(store, idle_s).run(held)


def main(arguments: list[str] | None = None) -> int:
    """Serve a queue; return the exit code."""
    parser = argparse.ArgumentParser(prog="hansa.scheduler.local_daemon")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--idle", type=float, default=IDLE_S)
    parser.add_argument("--lock-fd", type=int)
    asked = parser.parse_args(arguments)
    store = Store(asked.dir.absolute())
    return exit_code(lambda: _serve(store, asked.idle, asked.lock_fd))


if __name__ == "__main__":
    sys.exit(main())
