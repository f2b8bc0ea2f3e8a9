"""What the core is told of a federation, and what it remembers of an assignment."""

from __future__ import annotations

from dataclasses import dataclass, field

from hansa.core.commands import WorkOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """When a run is over; the first condition that holds ends it."""

    rounds: int | None = None
    updates: int | None = None
    wall_clock: float | None = None
    node_hours: float | None = None
    target_metric: str = "eval_loss"
    target_below: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the core needs of a federation.

    Attributes:
        facilities: Names, in the order of the file.
        stop: When the run is over.
        evaluators: Facilities that may evaluate versions, in order of preference.
        evaluate_every: Every how many versions; the first and last always are.
    """

    facilities: tuple[str, ...]
    stop: Stop
    evaluators: tuple[str, ...]
    evaluate_every: int = 1


@dataclass(slots=True)
class Progress:
    """How far an assignment has come, as far as the journal knows.

    Attributes:
        facility: Who has it.
        order: What was asked.
        number: Its last job; 0 before the first.
        job: The scheduler's id of that job.
        host: Key of the job whose allocation it uses; empty: a batch job of its own.
        newest: The newest version when that job was submitted.
        waiting: Whether the job waits for the word to begin.
        begun: Whether the word was given.
        base: The version that the job has bound; None before it has.
        bases: All versions that its jobs have bound: a checkpoint builds on one.
        started: Whether `JobStarted` was told, since the last requeue.
        requeues: How often the scheduler has put the job back into its queue.
        ended: Whether the scheduler has ended the job, or its host.
        how: In which state.
        asked: Whether somebody on our side had the job cancelled.
        spared: Earlier jobs that don't count as tries.
        closed: Empty while open; then `done`, `failed`, `withdrawn` or `lost` (with
            its facility).
        given_up: The newest version when it was withdrawn or lost.
        applied: Whether a version was made of its update.
        seen: Samples that the facility had delivered when the order was given: there
            its stream of data goes on.
    """

    facility: str
    order: WorkOrder
    number: int = 0
    job: str = ""
    host: str = ""
    newest: int | None = None
    waiting: bool = False
    begun: bool = False
    base: int | None = None
    bases: set[int] = field(default_factory=set)
    started: bool = False
    requeues: int = 0
    ended: bool = False
    how: str = ""
    asked: bool = False
    spared: int = 0
    closed: str = ""
    given_up: int = -1
    applied: bool = False
    seen: int = 0
