"""Journals of runs that never were, written by hand, and folders with them in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hansa.coordinator.folder import RunFolder
from hansa.core import events as ev
from hansa.core.commands import Term
from hansa.journal.line import Record, encode
from hansa.spec.federation import lock_text
from hansa.spec.load import federation_from_text

PLAN = """\
name: towns
seed: 3
model: {trainer: softmax, source: zeros}
task: digits
strategy: {name: fedavg}
stop: {rounds: 2}
defaults:
  gateway: {type: local, site: s.yaml}
  mover: posix
  job: {nodes: 2, time: 1h}
  work: {steps: 10, batch: 8, lr: 0.1}
facilities: {a: {}, b: {}}
"""


@dataclass
class Diary:
    """Writes a journal with few words; times are the server's."""

    names: tuple[str, ...] = ("a", "b")
    events: list[ev.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add(
            ev.RunStarted(
                at=0.0, run="r", plan="", seed=3, facilities=self.names, started=1.7e9
            ),
            self.version(0.0, 0),
        )

    def add(self, *events: ev.Event) -> None:
        self.events.extend(events)

    def sorted(self) -> list[ev.Event]:
        return sorted(self.events, key=lambda event: event.at)

    def version(self, at: float, number: int, *orders: str) -> ev.VersionPublished:
        terms = tuple(Term(ref=f"update/{one}", coefficient=0.5) for one in orders)
        return ev.VersionPublished(
            at=at, version=number, sha256=str(number), bytes=4000, seconds=0.5,
            terms=terms,
        )  # fmt: skip

    def staged(self, at: float, name: str, version: int, seconds: float) -> None:
        self.add(
            ev.ModelStaged(
                at=at, facility=name, version=version, bytes=4000, seconds=seconds
            )
        )

    def queued(self, at: float, order: str, name: str, host: str = "") -> None:
        self.add(
            ev.JobQueued(
                at=at, facility=name, assignment=order, number=1, job="7", newest=0,
                host=host,
            )
        )  # fmt: skip

    def started(self, at: float, order: str, name: str, wait: float) -> None:
        self.add(
            ev.JobStarted(
                at=at, facility=name, assignment=order, number=1, job="7", base=0,
                queue_wait=wait,
            )
        )  # fmt: skip

    def ended(
        self, at: float, order: str, name: str, wait: float, ran: float,
        state: str = "DONE",
    ) -> None:  # fmt: skip
        self.add(
            ev.JobEnded(
                at=at, facility=name, assignment=order, number=1, job="7", state=state,
                reason="", queue_wait=wait, run_s=ran, node_hours=2 * ran / 3600,
            )
        )  # fmt: skip

    def arrived(self, at: float, order: str, name: str, **timings: float) -> None:
        self.add(
            ev.UpdateArrived(
                at=at, facility=name, assignment=order, base=0, steps=10, samples=80,
                partial=False, bytes=1000, timings=timings,
            )
        )  # fmt: skip

    def order(self, begin: float, order: str, name: str, wait: float = 100.0) -> float:
        """Tell of an order with a batch job of its own, and return when it is over.

        It is given at `begin` and staged in 4 s; submitting takes 1 s. Then the queue,
        and a job of 60 s: 20 s start-up (15 of them seen by the worker), 30 s for 10
        steps, 4 s evaluation, 6 s writing. The server hears of it 3 s later, and 1 s of
        transfer brings the update.
        """
        self.staged(begin + 4, name, 0, 4.0)
        self.queued(begin + 5, order, name)
        starts = begin + 5 + wait
        self.started(starts + 22, order, name, wait)
        self.ended(starts + 63, order, name, wait, 60.0)
        self.arrived(
            starts + 64, order, name, startup_s=15.0, train_s=30.0, eval_s=4.0,
            write_s=6.0, transfer_s=1.0,
        )  # fmt: skip
        return starts + 64

    def finished(self, at: float, outcome: str = "done") -> None:
        self.add(ev.RunFinished(at=at, outcome=outcome, reason=""))


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def new_diary() -> type[Diary]:
    return Diary


Keep = Callable[..., RunFolder]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Write a plan and a journal as a run leaves them."""

    def written(events: Iterable[ev.Event], plan: str = PLAN) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / "r")
        folder.path.mkdir(parents=True)
        folder.lock.write_text(lock_text(federation_from_text(plan)))
        lines = [encode(Record(i + 1, "", e)) for i, e in enumerate(events)]
        folder.journal.write_bytes(b"".join(lines))
        return folder

    return written


@pytest.fixture
def plan() -> Any:
    return federation_from_text(PLAN)
