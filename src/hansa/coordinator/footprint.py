"""How much memory this process, and the programs that it starts, take for a while."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_S = 0.02
_PROC = Path("/proc")


class Footprint:
    """Measures while it is open; read its figures afterwards.

    The kernel keeps the peak of this process; other programs are looked at often.

    Attributes:
        own: Peak of this process's resident memory, less what it had at the begin, in
            bytes; None where the system does not tell.
        programs: Peak of what all programs had together that this process has started
            since, in bytes; None where the system does not tell.
    """

    def __init__(self) -> None:
        self.own: int | None = None
        self.programs: int | None = None
        self._before: int | None = None
        self._elder: set[str] = set()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def extra(self) -> int | None:
        """Both together."""
        if self.own is None or self.programs is None:
            return None
        return self.own + self.programs

    def __enter__(self) -> Self:
        _forget_peak()
        self._before = _memory("self", "VmRSS")
        self._elder = _descendants()
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._watcher.join()
        peak = _memory("self", "VmHWM")
        if peak is not None and self._before is not None:
            self.own = max(peak - self._before, 0)

    def look(self) -> None:
        """Look at the programs now; it is done now and then by itself, too."""
        ours = _words("self")
        # One that still has our words is a copy of us, just about to be a program.
        younger = _descendants() - self._elder
        programs = (pid for pid in younger if _words(pid) != ours)
        now = sum(_memory(pid, "VmRSS") or 0 for pid in programs)
        self.programs = max(self.programs or 0, now)

    def _watch(self) -> None:
        if self._before is None:
            return
        self.programs = 0
        while not self._over.wait(_EVERY_S):
            self.look()


def _forget_peak() -> None:
    """Have the kernel count the peak from now on.

    Where it doesn't, the peak of all the time is the measure: never too little.
    """
    try:
        (_PROC / "self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _memory(pid: str, entry: str) -> int | None:
    """Return a line of a process's status in bytes; None if there is none."""
    try:
        text = (_PROC / pid / "status").read_text(encoding="utf-8")
    except OSError:  # it has just ended, or this is no Linux
        return None
    for line in text.splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    return None


def _words(pid: str) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    try:
        return (_PROC / pid / "cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(pid: str = "self") -> set[str]:
    """Return the ids of all processes below one, but for those that just end."""
    children = {child for text in _children(pid) for child in text.split()}
    return children.union(*(_descendants(child) for child in children))


def _children(pid: str) -> list[str]:
    """Return what each thread of a process has started, as ids in a text."""
    found = []
    with suppress(OSError):  # a thread has just ended, or the whole process
        for task in (_PROC / pid / "task").iterdir():
            found.append((task / "children").read_text(encoding="ascii"))
    return found
