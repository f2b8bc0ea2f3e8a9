"""Runs that never were: builders of synthetic, but plausible, journals.

`harbour()` is four facilities over six rounds with everything that goes wrong in
practice; its figures are simple enough to check by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hansa.core import events as ev
from hansa.core.commands import Term
from hansa.core.ids import assignment_id, update_ref, version_ref

TASKS = (
    "property_prediction-esol",
    "property_prediction-lipo",
    "property_prediction-bbbp",
    "name_conversion-s2i",
    "name_conversion-i2f",
    "molecule_captioning",
    "retrosynthesis",
)


@dataclass
class Story:
    """Writes events with the fewest words; every method appends one or a few."""

    facilities: tuple[str, ...] = ("polaris", "frontier")
    run: str = "smol-chem"
    events: list[ev.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add(
            ev.RunStarted(
                at=0.0, run=self.run, plan="p" * 64, seed=7,
                facilities=self.facilities, started=1.7e9,
            )
        )  # fmt: skip

    def add(self, *events: ev.Event) -> None:
        self.events.extend(events)

    def sorted(self) -> list[ev.Event]:
        return sorted(self.events, key=lambda event: event.at)

    def version(self, at: float, number: int, *assignments: str) -> None:
        terms = [Term(ref=version_ref(number - 1), coefficient=1.0)] if number else []
        share = 1 / max(1, len(assignments))
        terms += [Term(ref=update_ref(a), coefficient=share) for a in assignments]
        sha = f"{number:x}" * 64
        self.add(
            ev.VersionPublished(
                at=at, version=number, sha256=sha[:64], bytes=4_000_000, seconds=0.5,
                terms=tuple(terms),
            )
        )  # fmt: skip

    def evaluated(self, at: float, number: int, loss: float, facility: str) -> None:
        self.add(
            ev.EvaluationReported(
                at=at, facility=facility, version=number, loss=loss,
                assignment=assignment_id("evaluate", number, facility),
                losses=by_task(loss),
            )
        )  # fmt: skip

    def staged(self, at: float, facility: str, version: int, seconds: float) -> None:
        self.add(
            ev.ModelStaged(
                at=at, facility=facility, version=version, bytes=4_000_000,
                seconds=seconds,
            )
        )  # fmt: skip

    def job(
        self, assignment: str, facility: str, queued: float, started: float | None,
        ended: float | None, *, newest: int = 0, base: int = 0, number: int = 1,
        state: str = "completed", reason: str = "", node_hours: float = 0.5,
    ) -> None:  # fmt: skip
        at = {"facility": facility, "assignment": assignment, "number": number}
        job = str(4000 + len(self.events))
        self.add(ev.JobQueued(at=queued, job=job, newest=newest, **at))
        wait = (started or ended or queued) - queued
        if started is not None:
            self.add(
                ev.JobStarted(at=started, job=job, base=base, queue_wait=wait, **at)
            )
        if ended is not None:
            run_s = 0.0 if started is None else ended - started
            self.add(
                ev.JobEnded(
                    at=ended, job=job, state=state, reason=reason, queue_wait=wait,
                    run_s=run_s, node_hours=node_hours, **at,
                )
            )  # fmt: skip

    def update(
        self, at: float, assignment: str, facility: str, *, base: int = 0,
        loss: float | None = None, partial: bool = False, train_s: float = 40.0,
        transfer_s: float = 2.0,
    ) -> None:  # fmt: skip
        metrics = {"train_loss": 1.0} | ({} if loss is None else {"eval_loss": loss})
        self.add(
            ev.UpdateArrived(
                at=at, facility=facility, assignment=assignment, base=base,
                steps=15 if partial else 30, samples=480 if partial else 960,
                partial=partial, bytes=2_000_000, metrics=metrics,
                losses={} if loss is None else by_task(loss),
                timings={"train_s": train_s, "transfer_s": transfer_s},
            )
        )  # fmt: skip

    def failed(
        self, at: float, assignment: str, facility: str, code: str, reason: str
    ) -> None:
        self.add(
            ev.AssignmentFailed(
                at=at, facility=facility, assignment=assignment, code=code,
                reason=reason, transient=False,
            )
        )  # fmt: skip

    def lost(self, at: float, facility: str, until: float | None = None) -> None:
        self.add(
            ev.FacilityLost(
                at=at, facility=facility, code="FACILITY_UNREACHABLE",
                reason="no answer for 2 h",
            )
        )  # fmt: skip
        if until is not None:
            self.add(ev.FacilityReady(at=until, facility=facility))

    def finished(self, at: float, outcome: str = "done", reason: str = "") -> None:
        self.add(ev.RunFinished(at=at, outcome=outcome, reason=reason))


def by_task(loss: float) -> dict[str, float]:
    """Losses by task around a mean, each task a little different."""
    spread = {task: 0.7 + 0.1 * i for i, task in enumerate(TASKS)}
    return {task: loss * factor for task, factor in spread.items()}


def harbour() -> Story:
    """Four facilities, six rounds of 1000 s; see the comments for what goes wrong."""
    names = ("polaris", "frontier", "perlmutter", "aurora")
    story = Story(facilities=names)
    story.version(0.0, 0)
    story.evaluated(60.0, 0, 2.0, "polaris")
    waits = {"polaris": 100.0, "frontier": 250.0, "perlmutter": 30.0, "aurora": 400.0}
    for round_ in range(1, 7):
        begin = 1000.0 * (round_ - 1)
        members = []
        for i, name in enumerate(names):
            assignment = assignment_id("train", round_, name)
            if name == "aurora" and round_ in (3, 4, 5, 6):
                continue  # lost from 2500 to the end
            queued, started = begin + 20, begin + 20 + waits[name]
            if name == "aurora" and round_ == 2:
                # its update misses version 2 and is never applied
                story.staged(begin + 15, name, 1, 8.0)
                story.job(assignment, name, queued, started, 2100.0, newest=1, base=1)
                story.update(2110.0, assignment, name, base=1, loss=1.9)
                continue
            if name == "perlmutter" and round_ == 4:
                # fails twice, then for good
                story.staged(begin + 15, name, 3, 5.0)
                for number in (1, 2):
                    story.job(
                        assignment, name, queued + 200 * (number - 1),
                        started + 200 * (number - 1), started + 200 * number - 60,
                        newest=3, base=3, number=number, state="node_fail",
                        reason="node x1000c3s4b0n0 failed", node_hours=0.1,
                    )  # fmt: skip
                story.failed(
                    begin + 500,
                    assignment,
                    name,
                    "WORKER",
                    "CUDA out of memory <script>alert('x')</script> & more",
                )
                continue
            story.staged(begin + 15, name, round_ - 1, 5.0)
            ended = started + 400 + 20 * i
            story.job(
                assignment, name, queued, started, ended,
                newest=round_ - 1, base=round_ - 1,
            )  # fmt: skip
            local = 1.0 + math.exp(-round_ / 2) + 0.15 * (i + 1)
            story.update(
                ended + 10, assignment, name, base=round_ - 1, loss=local,
                partial=name == "frontier" and round_ == 5,
            )  # fmt: skip
            members.append(assignment)
        story.version(1000.0 * round_, round_, *members)
        story.job(
            assignment_id("evaluate", round_, "polaris"), "polaris",
            1000.0 * round_ + 30, 1000.0 * round_ + 40, 1000.0 * round_ + 80,
            newest=round_, base=round_, node_hours=0.05,
        )  # fmt: skip
        story.evaluated(
            1000.0 * round_ + 90, round_, 1.0 + math.exp(-round_ / 2), "polaris"
        )
    story.lost(2500.0, "aurora")
    story.add(ev.RunResumed(at=3300.0), ev.RunResumed(at=3310.0))
    story.finished(6200.0, "partial", "6 rounds, without aurora")
    return story


def fleet(
    facilities: int, versions: int, tasks: int = 7, *, minutes: float = 90.0
) -> list[ev.Event]:
    """A smooth run of any size, for the pictures."""
    names = tuple(f"facility-with-a-long-name-{i:02d}" for i in range(facilities))
    story = Story(facilities=names)
    story.version(0.0, 0)
    length = minutes * 60 / max(1, versions)
    all_tasks = {f"group_{i % 4}-task_number_{i}": 0.5 + i / 20 for i in range(tasks)}
    for number in range(1, versions + 1):
        begin, members = length * (number - 1), []
        for i, name in enumerate(names):
            assignment = assignment_id("train", number, name)
            wait = length * (0.1 + 0.3 * ((i * 7 + number * 3) % 5) / 5)
            story.staged(begin + length * 0.02, name, number - 1, length * 0.01)
            story.job(
                assignment, name, begin + length * 0.03, begin + wait,
                begin + wait + length * 0.4, newest=number - 1, base=number - 1,
                node_hours=0.2 * (i + 1),
            )  # fmt: skip
            local = 1 + math.exp(-number / 20) + 0.02 * ((i * 5 + number) % 11)
            story.update(
                begin + wait + length * 0.42, assignment, name, base=number - 1,
                loss=local, transfer_s=length * 0.02,
            )  # fmt: skip
            members.append(assignment)
        story.version(length * number, number, *members)
    events: list[ev.Event] = story.sorted()
    for number in range(versions + 1):
        loss = 1 + math.exp(-number / 20)
        events.append(
            ev.EvaluationReported(
                at=minutes * 60 + number / 100, facility=names[0], version=number,
                assignment=assignment_id("evaluate", number, names[0]), loss=loss,
                losses={name: loss * factor for name, factor in all_tasks.items()},
            )
        )  # fmt: skip
    events.append(
        ev.RunFinished(at=minutes * 60 + 60, outcome="done", reason="rounds reached")
    )
    return events


@pytest.fixture
def new_story() -> type[Story]:
    return Story


@pytest.fixture(scope="session")
def harbour_events() -> list[ev.Event]:
    return harbour().sorted()


@pytest.fixture
def make_fleet() -> Callable[..., list[ev.Event]]:
    return fleet
