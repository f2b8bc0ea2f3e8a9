"""What a simulated run came to, as numbers that can be compared and averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hansa.coordinator.core import Coordinator
from hansa.core.events import (
    EvaluationReported,
    Event,
    JobEnded,
    JobQueued,
    JobStarted,
    ModelStaged,
    UpdateArrived,
    VersionPublished,
)

_UNSEEN = frozenset({ModelStaged, JobQueued, JobStarted})
"""Events that tell an observer nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A version's loss.

    Attributes:
        at_s: When the version was published, in seconds since the run began.
        version: Its number.
        loss: Mean test loss.
        node_hours: What had been used by then, jobs that still ran included.
    """

    at_s: float
    version: int
    loss: float
    node_hours: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One simulated run.

    Attributes:
        strategy: Name of the strategy.
        seed: Seed of everything that was drawn.
        outcome: ``done``, ``partial`` or ``failed``.
        reason: Why it ended, in words.
        wall_clock_s: Virtual seconds from start to end.
        node_hours: Charged in all.
        versions: Versions made, version 0 not counted.
        losses: Every measured version, in order.
        target_s: When the loss was first below the target; None: never, or no target.
        target_node_hours: Node-hours used by then; None likewise.
        rounds: Updates that went into a version, by facility.
        late: Updates that went into none, by facility.
        staleness: How many applied updates were so many versions old.
        queue_wait_s: Waits of the batch jobs that got their nodes, by facility, in the
            order in which they ended.
        events: Events in the journal.
        remarks: What a person should know of the data behind it, in sentences.
    """

    strategy: str
    seed: int
    outcome: str
    reason: str
    wall_clock_s: float
    node_hours: float
    versions: int
    losses: tuple[Measured, ...]
    target_s: float | None
    target_node_hours: float | None
    rounds: Mapping[str, int]
    late: Mapping[str, int]
    staleness: Mapping[int, int]
    queue_wait_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    events: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def final_loss(self) -> float | None:
        """Loss of the last version that was measured; None if none was."""
        return self.losses[-1].loss if self.losses else None


@dataclass(slots=True)
class Observer:
    """Looks on while a run is simulated, and tells what it came to.

    Attributes:
        node_hours: Returns what has been used up to now.
    """

    node_hours: Callable[[], float] = lambda: 0.0
    _events: int = 0
    _published: dict[int, tuple[float, float]] = field(default_factory=dict)
    _losses: list[Measured] = field(default_factory=list)
    _arrived: dict[str, tuple[str, int]] = field(default_factory=dict)
    _rounds: Counter[str] = field(default_factory=Counter)
    _staleness: Counter[int] = field(default_factory=Counter)
    _waits: dict[str, list[float]] = field(default_factory=dict)
    _all: Counter[str] = field(default_factory=Counter)

    def __call__(self, event: Event) -> None:
        """See an event that was handled."""
        self._events += 1
        if type(event) in _UNSEEN:
            return
        match event:
            case UpdateArrived():
                self._arrived[event.assignment] = event.facility, event.base
                self._all[event.facility] += 1
            case VersionPublished():
                self._see_version(event)
            case EvaluationReported() if event.losses:  # else nothing is trained
                at, hours = self._published[event.version]
                self._losses.append(Measured(at, event.version, event.loss, hours))
            case JobEnded() if event.run_s or event.state != "CANCELLED":
                waits = self._waits.setdefault(event.facility, [])
                waits.append(event.queue_wait)
            case _:
                pass

    def _see_version(self, event: VersionPublished) -> None:
        self._published[event.version] = (event.at, self.node_hours())
        for term in event.terms:
            # A remembered update may enter many versions; it counts in its first.
            arrived = self._arrived.pop(term.ref.removeprefix("update/"), None)
            if arrived is not None:
                facility, base = arrived
                self._rounds[facility] += 1
                self._staleness[event.version - 1 - base] += 1

    def outcome(
        self, strategy: str, seed: int, core: Coordinator, target: float | None
    ) -> Outcome:
        """Return what the run came to.

        Args:
            strategy: Name of the strategy.
            seed: Seed of the run.
            core: The core in its final state.
            target: Loss whose time is measured; None: none.
        """
        met = None
        if target is not None:
            met = next((one for one in self._losses if one.loss < target), None)
        names = core.plan.facilities
        return Outcome(
            strategy=strategy,
            seed=seed,
            outcome=core.outcome,
            reason=core.reason,
            wall_clock_s=core.at,
            node_hours=self.node_hours(),
            versions=max(core.newest, 0),
            losses=tuple(self._losses),
            target_s=None if met is None else met.at_s,
            target_node_hours=None if met is None else met.node_hours,
            rounds={name: self._rounds[name] for name in names},
            late={name: self._all[name] - self._rounds[name] for name in names},
            staleness=dict(sorted(self._staleness.items())),
            queue_wait_s={name: tuple(self._waits.get(name, ())) for name in names},
            events=self._events,
        )
