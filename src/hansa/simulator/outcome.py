"""What a simulated run came to, as numbers that can be compared and averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
        queue_wait_s: Waits of the batch jobs, by facility.
        events: Events in the journal.
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

    @property
    def final_loss(self) -> float | None:
        """Loss of the last version that was measured; None if none was."""
        return self.losses[-1].loss if self.losses else None
