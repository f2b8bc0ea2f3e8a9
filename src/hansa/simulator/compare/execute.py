"""Carrying runs out on all cores; what comes of them depends on no order."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Protocol, Self

from hansa.core.errors import HansaError, SimulationError, SpecError
from hansa.journal import read
from hansa.report.timeline import Timeline, timeline
from hansa.simulator.compare.score import Score, score
from hansa.simulator.compare.study import Configuration, Study, load
from hansa.simulator.outcome import Outcome
from hansa.simulator.simulate import simulate
from hansa.spec.federation import FederationSpec

PIECES = 8
"""Tasks are split until each process has so many: the last ones end together."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Simulate(Protocol):
    """The shape of `hansa.simulator.simulate.simulate`."""

    def __call__(
        self,
        spec: FederationSpec,
        *,
        seed: int | None = None,
        target: float | None = None,
        folder: Path | None = None,
    ) -> Outcome:
        """Simulate a federation."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """Runs of one configuration; its federation is completed and checked once."""

    configuration: Configuration
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """A run without a result.

    Attributes:
        refused: The federation can't be so, with any seed.
        message: Why.
    """

    refused: bool
    message: str


Run = Score | Broken
Done = Callable[[int], None]
"""Told how many runs have just come to their end."""


class Workers:
    """Processes that carry out the runs of one study; a context manager.

    One process a core with one thread each: runs are independent, and the threads of a
    matrix library would only wait for each other.

    Args:
        study: The study.
        jobs: Processes; 1: this one.
        simulate: What carries one run out; a function that a new process can import.
    """

    def __init__(self, study: Study, jobs: int, simulate: Simulate = simulate) -> None:
        self._study, self._jobs, self._simulate = study, jobs, simulate
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[mp.process.BaseProcess] = []

    def __enter__(self) -> Self:
        if self._jobs > 1:
            self._others = mp.active_children()
            self._pool = ProcessPoolExecutor(
                self._jobs,
                mp_context=mp.get_context("spawn"),
                initializer=_begin,
                initargs=(self._study, self._simulate),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for child in mp.active_children():
                if child not in self._others:
                    child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Sequence[Task], done: Done) -> list[tuple[Run, ...]]:
        """Return the results of all tasks, in their order and that of their seeds.

        Args:
            tasks: What to do.
            done: Told of progress.

        Raises:
            SimulationError: A process died.
        """
        pieces = [
            (index, piece)
            for index, task in enumerate(tasks)
            for piece in _split(task, len(tasks), self._jobs)
        ]
        found: list[tuple[Run, ...]] = [() for _ in tasks]
        results = self._results([piece for _, piece in pieces], done)
        for (index, _), runs in zip(pieces, results, strict=True):
            found[index] += runs
        return found

    def _results(self, tasks: Sequence[Task], done: Done) -> list[tuple[Run, ...]]:
        if self._pool is None:
            found = []
            for task in tasks:
                found.append(carry_out(self._study, task, self._simulate))
                done(len(task.seeds))
            return found
        with _children_of_their_own(), _explained():
            futures = [self._pool.submit(_carry_out, task) for task in tasks]
        with _explained():
            for future in as_completed(futures):
                done(len(future.result()))
            return [future.result() for future in futures]

    def timelines(self, tasks: Sequence[Task]) -> list[Timeline | None]:
        """Return who did what, when, in the first run of each task.

        Raises:
            SimulationError: A process died.
        """
        if self._pool is None:
            return [draw(self._study, task, self._simulate) for task in tasks]
        with _children_of_their_own(), _explained():
            futures = [self._pool.submit(_draw, task) for task in tasks]
        with _explained():
            return [future.result() for future in futures]


def _split(task: Task, tasks: int, jobs: int) -> list[Task]:
    size = max(1, len(task.seeds) * tasks // (PIECES * jobs))
    return [
        Task(task.configuration, task.seeds[at : at + size])
        for at in range(0, len(task.seeds), size)
    ]


def carry_out(study: Study, task: Task, simulate: Simulate) -> tuple[Run, ...]:
    """Carry a task's runs out in this process, one after the other."""
    try:
        spec = load(study.document, study.path, task.configuration.overrides)
    except HansaError as error:
        return tuple(Broken(True, _words(error)) for _ in task.seeds)
    return tuple(_run(spec, seed, study.target, simulate) for seed in task.seeds)


def _run(
    spec: FederationSpec, seed: int, target: float | None, simulate: Simulate
) -> Run:
    try:
        return score(simulate(spec, seed=seed, target=target))
    except (SpecError, SimulationError) as error:
        return Broken(True, _words(error))
    except Exception as error:  # it is told with its seed, and the others go on
        return Broken(False, _words(error))


def draw(study: Study, task: Task, simulate: Simulate) -> Timeline | None:
    """Return who did what, when, in a task's first run; None if it can't be run."""
    with TemporaryDirectory(prefix="hansa-") as place:
        folder = Path(place) / "run"
        try:
            spec = load(study.document, study.path, task.configuration.overrides)
            simulate(spec, seed=task.seeds[0], target=study.target, folder=folder)
            records = list(read(folder / "journal.jsonl"))
        except HansaError:  # told already, where the run's own result was asked for
            return None
        return timeline(record.event for record in records)


def _words(error: Exception) -> str:
    if isinstance(error, HansaError):
        return f"{error.message} {error.hint or ''}".strip()
    return f"{type(error).__name__}: {error}"


# In the other processes.

_given: list[tuple[Study, Simulate]] = []


def _begin(study: Study, simulate: Simulate) -> None:
    _given[:] = [(study, simulate)]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed can't tell its children; they would wait for ever."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _carry_out(task: Task) -> tuple[Run, ...]:
    study, simulate = _given[0]
    return carry_out(study, task, simulate)


def _draw(task: Task) -> Timeline | None:
    study, simulate = _given[0]
    return draw(study, task, simulate)


@contextmanager
def _children_of_their_own() -> Iterator[None]:
    """Let processes begin with one thread each and deaf to Ctrl-C, which is ours."""
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


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise SimulationError(
            "A process of the comparison died.",
            hint="Is there enough memory? Try fewer --jobs.",
        ) from error
