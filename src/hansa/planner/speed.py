"""How long a round takes, from what was measured at the facility."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.planner.record import ThroughputRecord

_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What a round of one facility costs; queue and transfers are not in it.

    Attributes:
        step_s: Seconds of an optimizer step.
        samples_per_s: Examples of a second, over all ranks.
        round_s: Seconds of all steps, with the start of the job.
        node_hours: What that costs.
        measured: The node counts that were measured.
        sharding: How the model was spread then; empty: not told.
    """

    step_s: float
    samples_per_s: float
    round_s: float
    node_hours: float
    measured: tuple[int, ...]
    sharding: str = ""


def pace(
    record: ThroughputRecord, *, nodes: int, batch: int, steps: int
) -> Pace | None:
    """Return the pace on some nodes; None: nothing was measured.

    Args:
        record: Measurements of this workload at this facility.
        nodes: Nodes of the job.
        batch: Examples of an optimizer step, over all ranks.
        steps: Steps of a round.
    """
    if not record.measurements:
        return None
    step_s = record.seconds_per_step(nodes, batch)
    round_s = (record.startup_s or 0.0) + steps * step_s
    nearest = min(record.nodes, key=lambda count: abs(count - nodes))
    return Pace(
        step_s=step_s,
        samples_per_s=batch / step_s,
        round_s=round_s,
        node_hours=round_s * nodes / _HOUR,
        measured=record.nodes,
        sharding=record.of(nearest).sharding,
    )
