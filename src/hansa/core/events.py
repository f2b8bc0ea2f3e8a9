"""Events: all that can happen to a run. The journal is a list of these.

`at` is in seconds since the run began, on the server's clock, and never decreases.
Durations at a facility (`queue_wait`, `train_s`, ...) are differences of that
facility's own clock or of its scheduler's records; two hosts' clocks are never
subtracted.
"""

from __future__ import annotations

from dataclasses import field

from hansa.core.commands import Term
from hansa.core.records import record


@record
class RunStarted:
    """The run exists. `started` is the server's unix time, for people."""

    at: float
    run: str
    plan: str
    seed: int
    facilities: tuple[str, ...]
    started: float


@record
class RunResumed:
    """A coordinator took up the journal again."""

    at: float


@record
class FacilityReady:
    """A facility that was lost answers again."""

    at: float
    facility: str


@record
class FacilityLost:
    """A facility has not answered, or not worked, for longer than patience allows."""

    at: float
    facility: str
    code: str
    reason: str


@record
class ModelStaged:
    """A version, or a state that was made with it, now lies in a facility's mailbox.

    `state` is the state's name, as ``correction-polaris``; empty: the version itself.
    """

    at: float
    facility: str
    version: int
    bytes: int
    seconds: float
    state: str = ""

    @property
    def what(self) -> str:
        """What was moved, in words."""
        version = f"version {self.version}"
        return f"{self.state} of {version}" if self.state else version


@record
class TransferSubmitted:
    """Files are about to be handed to a service that moves them by itself.

    Attributes:
        ticket: The service's name for the submission: under one name it carries
            nothing out twice.
        direction: ``put`` (to the facility) or ``get``.
        places: The directories in the mailbox, as ``smol/versions/3``.
    """

    at: float
    facility: str
    ticket: str
    direction: str
    places: tuple[str, ...]


@record
class TransferEnded:
    """The service is done with a submission, or has been told to forget it.

    Attributes:
        ticket: That of `TransferSubmitted`.
        outcome: ``done``, ``failed`` or ``cancelled``.
        reason: Why it was not done, in words.
        bytes: What went over the line, what was sent again included.
        seconds: From the submission to the end, by the service's own records.
        faults: Troubles that the service mended by itself.
    """

    at: float
    facility: str
    ticket: str
    outcome: str
    reason: str = ""
    bytes: int = 0
    seconds: float = 0.0
    faults: int = 0


@record
class JobQueued:
    """The facility's scheduler accepted a job, or a job of its took the order on.

    Attributes:
        job: The scheduler's id.
        newest: The newest version then; the job may bind a later one.
        host: Key of the job whose allocation the order uses, as
            ``train-0001-polaris-1.1``; empty when it has a batch job of its own.
            A hosted order never waits in the queue and is never charged by itself.
        spared: Earlier jobs of the assignment that don't count as tries; -1: not said
            (journals of older versions).
    """

    at: float
    facility: str
    assignment: str
    number: int
    job: str
    newest: int
    host: str = ""
    spared: int = -1


@record
class JobWaiting:
    """A job runs and waits for the word to begin, so that all begin together."""

    at: float
    facility: str
    assignment: str
    number: int
    job: str
    queue_wait: float


@record
class JobRequeued:
    """The scheduler took a running job back into its queue (preempted, node lost).

    `run_s` and `node_hours` are what the broken-off run has cost, by the scheduler's
    records; `JobEnded` counts only from the job's last start. `restarts` is how often
    that has happened to the job by now; 0: not said (journals of older versions).
    """

    at: float
    facility: str
    assignment: str
    number: int
    job: str
    reason: str
    run_s: float
    node_hours: float
    restarts: int = 0


@record
class JobStarted:
    """A job runs and has bound a version; `queue_wait` seconds by its scheduler.

    `base` is -1 for a job that was queued ahead: it has no order yet.
    """

    at: float
    facility: str
    assignment: str
    number: int
    job: str
    base: int
    queue_wait: float


@record
class JobEnded:
    """A job left the scheduler. `run_s` and `node_hours` by the scheduler's records.

    In state ``UNKNOWN`` it vanished from them, and is charged as it was seen to run.
    """

    at: float
    facility: str
    assignment: str
    number: int
    job: str
    state: str
    reason: str
    queue_wait: float
    run_s: float
    node_hours: float


@record
class UpdateArrived:
    """A verified update lies in the store.

    Attributes:
        base: The version that the facility trained from.
        steps: Optimizer steps done (fewer than ordered when `partial`).
        samples: Training samples seen.
        bytes: Size of the files that travelled.
        metrics: Numbers by name: `train_loss`, `eval_loss` of the local model, ...
        losses: The local model's test loss by task.
        timings: Seconds by name: `train_s`, `startup_s`, `transfer_s`, ...
    """

    at: float
    facility: str
    assignment: str
    base: int
    steps: int
    samples: int
    partial: bool
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


@record
class AssignmentFailed:
    """An assignment is over without a result, after all of the lane's own retries."""

    at: float
    facility: str
    assignment: str
    code: str
    reason: str
    transient: bool


@record
class VersionPublished:
    """A new global version is on disk; `terms` say exactly what it was made of."""

    at: float
    version: int
    sha256: str
    bytes: int
    seconds: float
    terms: tuple[Term, ...]


@record
class AggregateFailed:
    """A version can't be made of what was asked for, as when the sum overflows."""

    at: float
    version: int
    code: str
    reason: str


@record
class EvaluationReported:
    """A version's test loss: the mean over tasks, and by task."""

    at: float
    facility: str
    assignment: str
    version: int
    loss: float
    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@record
class TimerFired:
    """A timer set by `SetTimer` ran out."""

    at: float
    timer: str


@record
class BudgetReached:
    """A stop condition of the plan holds; derived by the core, never journaled."""

    at: float
    budget: str
    detail: str


@record
class OperatorAsked:
    """A person asked for something: `stop` or `cancel`."""

    at: float
    request: str


@record
class RunFinished:
    """The run is over: `done`, `partial` (not all facilities) or `failed`."""

    at: float
    outcome: str
    reason: str


Event = (
    RunStarted
    | RunResumed
    | FacilityReady
    | FacilityLost
    | ModelStaged
    | TransferSubmitted
    | TransferEnded
    | JobQueued
    | JobWaiting
    | JobRequeued
    | JobStarted
    | JobEnded
    | UpdateArrived
    | AssignmentFailed
    | VersionPublished
    | AggregateFailed
    | EvaluationReported
    | TimerFired
    | BudgetReached
    | OperatorAsked
    | RunFinished
)
