"""Processes that share work: whoever is free gets the next piece.

Each has a line of its own to this process, which needs no other thread. So Ctrl-C may
come at any moment: what was half said goes with its line, and nobody waits for a lock
that a process took with it.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from hansa.core.errors import SimulationError

Given = TypeVar("Given")
Task = TypeVar("Task")
Result = TypeVar("Result")

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_LOOK_S = 1.0
"""A signal that comes just before a wait begins does not end it; the next one begins
after this."""


class Processes(Generic[Given]):
    """Processes with one thread each, deaf to Ctrl-C, which is this process's.

    They are started with the first work.

    Args:
        number: How many.
        given: What all work begins from; each process gets it once.
    """

    def __init__(self, number: int, given: Given) -> None:
        self._number, self._given = number, given
        self._lines: dict[Connection, BaseProcess] = {}

    def each(
        self,
        work: Callable[[Given, Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None],
    ) -> list[Result]:
        """Have every task done; return what came of them, in their order.

        Args:
            work: A function that a new process can import.
            tasks: What it is called with, besides what was given.
            done: Told of each result, as it comes.

        Raises:
            SimulationError: A process died, or the work failed.
        """
        if not self._lines:
            self._start()
        todo = deque(enumerate(tasks))
        found: dict[int, Result] = {}
        free, at_work = list(self._lines), dict[Connection, int]()
        while todo or at_work:
            while todo and free:
                line = free.pop()
                at_work[line], task = todo.popleft()
                _tell(line, (work, task))
            ready = wait(list(at_work), _LOOK_S)
            for line in [one for one in at_work if one in ready]:
                result = found[at_work.pop(line)] = hear(line)
                free.append(line)
                done(result)
        return [found[index] for index in range(len(tasks))]

    def end(self, *, at_once: bool) -> None:
        """Let the processes leave, and wait until they have.

        Args:
            at_once: Also those that are at work.
        """
        for line, process in self._lines.items():
            if at_once:  # before its line ends, of which it would complain
                process.terminate()
            line.close()
        for process in self._lines.values():
            process.join()
        self._lines = {}

    def _start(self) -> None:
        context = mp.get_context("spawn")
        resource_tracker.ensure_running()  # its start would end the mask below
        with _children_of_their_own():
            for _ in range(self._number):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                self._lines[ours] = process
        for line in self._lines:
            _tell(line, self._given)


def _tell(line: Connection, words: object) -> None:
    with _explained():
        line.send(words)


def hear(line: Connection) -> Any:
    """Return the next answer on a line.

    Raises:
        SimulationError: Its process died, also amid its words, or the work failed.
    """
    with _explained():
        result, trouble = line.recv()
    if trouble:
        raise SimulationError(f"A process of the comparison failed: {trouble}")
    return result


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise SimulationError(
            "A process of the comparison died.",
            hint="Is there enough memory? Try fewer --jobs.",
        ) from error


@contextmanager
def _children_of_their_own() -> Iterator[None]:
    """Let processes begin with one thread each and deaf to Ctrl-C."""
    kept = {name: os.environ.get(name) for name in THREADS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# In the other processes.


def _serve(line: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    words = _heard(line)
    given = next(words, None)
    for work, task in words:
        try:
            answer = work(given, task), ""
        except Exception as error:  # it is the parent who tells
            answer = None, f"{type(error).__name__}: {error}"
        line.send(answer)


def _heard(line: Connection) -> Iterator[Any]:
    with suppress(EOFError, OSError):  # there is no more
        while True:
            yield line.recv()


def _end_with_parent() -> None:
    """A parent that was killed can't tell its children; they would work for nobody."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
