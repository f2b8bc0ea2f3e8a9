"""Carrying runs out on all cores; what comes of them depends on no order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Protocol, Self, TypeVar

from hansa.core.errors import HansaError, SimulationError, SpecError
from hansa.journal import read
from hansa.report.timeline import Timeline, timeline
from hansa.simulator.compare.processes import Processes
from hansa.simulator.compare.score import Score, score
from hansa.simulator.compare.study import Configuration, Study, load
from hansa.simulator.outcome import Outcome
from hansa.simulator.simulate import simulate
from hansa.spec.federation import FederationSpec

PIECES = 8
"""Tasks are split until each process has so many: the last ones end together."""

Result = TypeVar("Result")


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
class Means:
    """What every task of a study is carried out with."""

    study: Study
    simulate: Simulate

    def federation(self, task: Task) -> FederationSpec:
        """Return a task's federation, completed and checked."""
        study = self.study
        return load(study.document, study.path, task.configuration.overrides)


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
        self._jobs, self._means = jobs, Means(study, simulate)
        self._processes = Processes(jobs, self._means) if jobs > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._processes is not None:
            self._processes.end(at_once=kind is not None)

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
        results = self._each(
            carry_out, [piece for _, piece in pieces], lambda runs: done(len(runs))
        )
        for (index, _), runs in zip(pieces, results, strict=True):
            found[index] += runs
        return found

    def timelines(self, tasks: Sequence[Task]) -> list[Timeline | None]:
        """Return who did what, when, in the first run of each task.

        Raises:
            SimulationError: A process died.
        """
        return self._each(draw, tasks, lambda _: None)

    def _each(
        self,
        work: Callable[[Means, Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None],
    ) -> list[Result]:
        if self._processes is not None:
            return self._processes.each(work, tasks, done)
        found = []
        for task in tasks:
            found.append(work(self._means, task))
            done(found[-1])
        return found


def _split(task: Task, tasks: int, jobs: int) -> list[Task]:
    size = max(1, len(task.seeds) * tasks // (PIECES * jobs))
    return [
        Task(task.configuration, task.seeds[at : at + size])
        for at in range(0, len(task.seeds), size)
    ]


def carry_out(means: Means, task: Task) -> tuple[Run, ...]:
    """Carry a task's runs out in this process, one after the other."""
    try:
        spec = means.federation(task)
    except HansaError as error:
        return tuple(Broken(True, _words(error)) for _ in task.seeds)
    return tuple(_run(spec, seed, means) for seed in task.seeds)


def _run(spec: FederationSpec, seed: int, means: Means) -> Run:
    try:
        return score(means.simulate(spec, seed=seed, target=means.study.target))
    except (SpecError, SimulationError) as error:
        return Broken(True, _words(error))
    except Exception as error:  # it is told with its seed, and the others go on
        return Broken(False, _words(error))


def draw(means: Means, task: Task) -> Timeline | None:
    """Return who did what, when, in a task's first run; None if it can't be run."""
    with TemporaryDirectory(prefix="hansa-") as place:
        folder = Path(place) / "run"
        try:
            means.simulate(
                means.federation(task),
                seed=task.seeds[0],
                target=means.study.target,
                folder=folder,
            )
            records = list(read(folder / "journal.jsonl"))
        except HansaError:  # told already, where the run's own result was asked for
            return None
        return timeline(record.event for record in records)


def _words(error: Exception) -> str:
    if isinstance(error, HansaError):
        return f"{error.message} {error.hint or ''}".strip()
    return f"{type(error).__name__}: {error}"
