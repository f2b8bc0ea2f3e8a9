"""Runs one job of the block queue on a compute node, in the foreground.

The runner takes the job (once, whoever else tries), starts its script in a session of
its own, touches the beat, warns and ends the job by its walltime, and notes how it
ended. It ends the job, too, when that was cancelled, when somebody has noted the job's
end because the beat was too old, and when the runner itself is told to end: the block
is over then.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hansa.scheduler.block_queue import STALE_S, Asked, Entry, once

GRACE_S = 20.0
"""From SIGTERM to SIGKILL; a worker may save its state in this time."""

END_S = 30.0
"""A job's walltime ends so long before that of its block."""

LOOK_S, BEATS = 1.0, 20
"""The runner looks for words so often, and beats so often while a beat is good."""

_TICK_S = 0.25
_PR_SET_PDEATHSIG = 1
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a runner keeps to.

    Attributes:
        stale_s: A beat that is older than this is none.
        block_ends: When the block ends, in unix seconds; None: nobody says.
        look_s: Seconds between two looks for words to the job.
        grace_s: Seconds from SIGTERM to SIGKILL.
    """

    stale_s: float = STALE_S
    block_ends: float | None = None
    look_s: float = LOOK_S
    grace_s: float = GRACE_S

    def walltime(self, asked: Asked, now: float) -> float | None:
        """Return the seconds that a job gets; None: too few are left of the block.

        Args:
            asked: The job.
            now: Unix seconds.
        """
        if self.block_ends is None:
            return asked.time_s
        left = self.block_ends - END_S - now
        least = 3 * asked.warning_s or 0.5 * asked.time_s
        return None if left < least else min(asked.time_s, left)


def work(entry: Entry, limits: Limits) -> bool:
    """Take a job that waits and run it to its end.

    Args:
        entry: The job.
        limits: What the runner keeps to.

    Returns:
        Whether it was taken; not if somebody else has, or too little is left of the
        block.

    Raises:
        QueueError: The files are damaged, or the file system has no hard links.
        OSError: They can't be written.
    """
    asked, now = entry.asked(), time.time()
    limit_s = limits.walltime(asked, now)
    if limit_s is None or "turn.json" in entry.names():
        return False
    turn = {"started": now, "limit_s": limit_s, "host": socket.gethostname()}
    if not once(entry.turn, turn):
        return False
    with _told_to_end() as told:
        once(entry.end, _run(entry, asked, limit_s, limits, told))
    return True


def _run(
    entry: Entry, asked: Asked, limit_s: float, limits: Limits, told: list[int]
) -> dict[str, object]:
    try:
        process = _start(entry, asked)
    except OSError as error:
        return _end("FAILED", 126, f"it can't be started: {error}")
    return _Keeper(entry, asked, process, limit_s, limits, told).keep()


def _start(entry: Entry, asked: Asked) -> subprocess.Popen[bytes]:
    first = entry.script.read_text(encoding="utf-8").partition("\n")[0]
    shell = first.removeprefix("#!").split()
    entry.beat.touch(mode=0o600)
    prctl = ctypes.CDLL(None).prctl

    def die_with_the_runner() -> None:
        # Else it would go on without a beat, beside the job that follows.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with Path(asked.log).open("ab") as log:
        return subprocess.Popen(
            [*shell, str(entry.script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=asked.directory,
            env={**os.environ, "HANSA_JOB_ID": entry.id},
            start_new_session=True,
            preexec_fn=die_with_the_runner,  # noqa: PLW1509 - it only calls the kernel
        )


def _end(state: str, code: int | None, reason: str) -> dict[str, object]:
    return {"state": state, "ended": time.time(), "exit_code": code, "reason": reason}


@dataclass(slots=True)
class _Keeper:
    """Keeps one process: beats, looks, warns, ends."""

    entry: Entry
    asked: Asked
    process: subprocess.Popen[bytes]
    limit_s: float
    limits: Limits
    told: list[int]
    began: float = field(default_factory=time.monotonic)
    warned: bool = False
    ending: str = ""
    kill_at: float = float("inf")
    looked: float = float("-inf")
    beaten: float = float("-inf")

    def keep(self) -> dict[str, object]:
        """Return how the process ended."""
        while not self._is_over():
            now = time.monotonic()
            self._by_the_clock(now - self.began)
            self._beat(now)
            self._look(now)
            self._end_it(now)
            time.sleep(min(_TICK_S, self.limits.look_s))
        # While it is a zombie its number can't be reused: end what it left behind.
        self._kill()
        code = self.process.wait()
        state = self.ending or ("DONE" if code == 0 else "FAILED")
        return _end(state, code, self._reason(state, code))

    def _is_over(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, options) is not None

    def _by_the_clock(self, ran: float) -> None:
        if self.told:
            self.ending = self.ending or "NODE_FAIL"
        if ran >= self.limit_s:
            self.ending = self.ending or "TIMEOUT"
        warning = self.asked.warning_s
        if warning and not self.warned and ran >= self.limit_s - warning:
            # Only to the launcher, which passes it on: some of its helpers die of it.
            self.process.send_signal(signal.SIGUSR1)
            self.warned = True

    def _beat(self, now: float) -> None:
        if now - self.beaten >= self.limits.stale_s / BEATS:
            with suppress(OSError):  # a file system that hangs is no reason to end
                os.utime(self.entry.beat)
                self.beaten = now

    def _look(self, now: float) -> None:
        if now - self.looked < self.limits.look_s:
            return
        self.looked = now
        names: frozenset[str] = frozenset()
        with suppress(OSError):
            names = self.entry.names()
        if "end.json" in names:
            self.ending = self.ending or "NODE_FAIL"
        elif "cancel.json" in names:
            self.ending = self.ending or "CANCELLED"

    def _end_it(self, now: float) -> None:
        if not self.ending:
            return
        if self.kill_at == float("inf"):
            self.process.send_signal(signal.SIGTERM)
            self.kill_at = now + self.limits.grace_s
        elif now >= self.kill_at:
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _reason(self, state: str, code: int) -> str:
        words = {
            "TIMEOUT": f"walltime of {self.limit_s:.0f} s is over",
            "CANCELLED": "cancelled while running",
            "NODE_FAIL": "its block was ended",
        }
        if state in words:
            return words[state]
        if code < 0:
            return f"killed by signal {-code}"
        return f"exit code {code}" if code else ""


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """Note the signals that tell this process to end, instead of ending."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told  # signals are somebody else's
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        told.append(number)

    older = {number: signal.signal(number, handle) for number in _ENDS}
    try:
        yield told
    finally:
        for number, handler in older.items():
            signal.signal(number, handler)
