"""Rank 0's side of an order: each call is made on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from hansa.core.errors import HansaError, WorkerError, from_json
from hansa.worker.base import Array, Report
from hansa.worker.job import Job, trainer_plugin
from hansa.worker.loading import Pause, Sums, Work, known, means
from hansa.worker.team.crew import Crew

WINDOW: Final = 4
"""An evaluation looks after so many batches of a step whether it has to stop."""

UNABLE_S: Final = 300.0
"""When one rank can't use or write a checkpoint, all others say within so long what
they can: they may wait for it in a collective."""


class Leader(Work):
    """The work of a whole team, as one process's.

    Args:
        job: What to do.
        crew: This rank, 0, and the others.
    """

    def __init__(self, job: Job, crew: Crew) -> None:
        crew.begin(job)
        super().__init__(job, crew.team)
        self._crew = crew

    def check(self) -> None:
        """Raise if the team has ended."""
        self._crew.watch.check()

    def read(self, *, train: bool, test: bool) -> bool:
        """Read the data here, then on the others, which find it prepared."""
        with self._crew.together(slow=True):
            found = super().read(train=train, test=test)
        self._crew.tell("read", {"train": train, "test": test})
        return found

    def load(self, version: Path, verified: Callable[[], None] = known) -> None:
        """Make a trainer on every rank."""
        self._crew.tell("load", {"version": str(version)})
        with self._crew.together(slow=True):
            super().load(version, verified)

    def restore(self, directory: Path, *, optimizer_only: bool = False) -> None:
        """Take up a checkpoint on all ranks, or on none.

        Raises:
            WorkerError: One of them can't use it, or the team has ended.
        """
        told = {"directory": str(directory), "optimizer_only": optimizer_only}
        restore = partial(super().restore, directory, optimizer_only=optimizer_only)
        failure = self._by_all("restore", told, restore, WorkerError)
        if failure is not None:
            raise WorkerError.of(failure)

    def step(self, index: int) -> float:
        """Do a step on all ranks, each with its part of the examples."""
        self._crew.tell("step", {"index": index})
        with self._crew.together():
            return super().step(index)

    def evaluate(self, pause: Pause) -> Mapping[str, float]:
        """Return the mean test loss by task; ranks share the examples."""
        window = max(WINDOW * self.batch, 8 * self.team.world)
        found: list[Sums] = []
        for first in range(0, len(self._test), window):
            pause()
            count = min(window, len(self._test) - first)
            number = self._crew.tell("evaluate", {"first": first, "count": count})
            with self._crew.together():
                found.append(self.share(first, count))
            found += [answer["sums"] for answer in self._crew.answers(number)]
        return means(found)

    def suspects(self, index: int) -> list[list[str]]:
        """Return, by rank, the parts of a step whose loss is not finite."""
        number = self._crew.tell("suspects", {"index": index})
        with self._crew.together():
            own = self.own_suspects(index)
        others = self._crew.answers(number)
        return [own, *(answer["suspects"] for answer in others)]

    def save(self, directory: Path) -> None:
        """Let every rank write its own files into `directory`; wait for all.

        Raises:
            HansaError: One of them can't, and all have left off; or the team has ended.
        """
        told = {"directory": str(directory)}
        save = partial(super().save, directory)
        failure = self._by_all("save", told, save, HansaError)
        if failure is not None:
            raise failure

    def _by_all(
        self,
        do: str,
        told: Mapping[str, Any],
        call: Callable[[], None],
        kind: type[HansaError],
    ) -> HansaError | None:
        """Make a call that may fail on some ranks; return the failure of one."""
        number = self._crew.tell(do, told)
        failure: HansaError | None = None
        try:
            with self._crew.together(slow=True):
                call()
        except kind as error:
            self.check()
            failure = error
        within = None if failure is None else UNABLE_S
        for answer in self._crew.answers(number, within):
            if answer["error"] is not None:
                failure = failure or from_json(answer["error"])
        return failure

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors; the others give their parts in lock step."""
        self._crew.tell("tensors")
        with self._crew.together(slow=True):
            yield from super().tensors()

    def report(self) -> Report:
        """Return what rank 0's trainer tells, of all ranks."""
        self._crew.tell("report")
        with self._crew.together():
            return super().report()

    def drop(self) -> None:
        """Give back memory, on all ranks."""
        super().drop()
        if not self._crew.broken:
            self._crew.tell("drop")


def work_of(job: Job, crew: Crew | None) -> Work:
    """Return the work of a job: that of the team, if its trainer can have one."""
    if crew is None or not trainer_plugin(job.order.model.trainer).parallel:
        return Work(job)
    return Leader(job, crew)
