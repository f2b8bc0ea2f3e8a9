"""One run, as much of it as a comparison needs; small enough to keep thousands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from hansa.simulator.outcome import Measured, Outcome

POINTS = 400
"""Points of a kept curve; more would not be seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One run; see `hansa.simulator.outcome.Outcome` for what is not told here.

    Attributes:
        final_loss: Infinite where the run diverged, None where nothing was measured.
        loss_seconds: Integral of the loss over time, up to the end of the run.
        queue_wait_s: Median wait by facility; facilities without a wait left out.
        times: When the loss became another one, thinned to at most `POINTS`.
        losses: What it then was.
        remarks: What a person should know of the data behind it.
    """

    seed: int
    outcome: str
    reason: str
    wall_clock_s: float
    node_hours: float
    versions: int
    target_s: float | None
    target_node_hours: float | None
    final_loss: float | None
    loss_seconds: float
    rounds: Mapping[str, int]
    late: Mapping[str, int]
    staleness: Mapping[int, int]
    queue_wait_s: Mapping[str, float]
    times: tuple[float, ...]
    losses: tuple[float, ...]
    remarks: tuple[str, ...] = ()

    def mean_loss(self, horizon: float) -> float | None:
        """Return the loss averaged from the start to the horizon, in seconds.

        The last loss is carried on from the end of the run; the first one holds from
        the start.
        """
        if self.final_loss is None or horizon <= 0:
            return None
        rest = max(0.0, horizon - self.wall_clock_s)
        return (self.loss_seconds + (self.final_loss * rest if rest else 0)) / horizon


def score(outcome: Outcome) -> Score:
    """Return what a comparison keeps of a run."""
    kept = _thinned(outcome.losses)
    final = outcome.final_loss
    return Score(
        seed=outcome.seed,
        outcome=outcome.outcome,
        reason=outcome.reason,
        wall_clock_s=outcome.wall_clock_s,
        node_hours=outcome.node_hours,
        versions=outcome.versions,
        target_s=outcome.target_s,
        target_node_hours=outcome.target_node_hours,
        final_loss=None if final is None else _known(final),
        loss_seconds=_area(outcome.losses, outcome.wall_clock_s),
        rounds=dict(outcome.rounds),
        late=dict(outcome.late),
        staleness=dict(outcome.staleness),
        queue_wait_s={
            name: median(waits) for name, waits in outcome.queue_wait_s.items() if waits
        },
        times=tuple(one.at_s for one in kept),
        losses=tuple(_known(one.loss) for one in kept),
        remarks=outcome.remarks,
    )


def _known(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _area(losses: Sequence[Measured], end: float) -> float:
    """Return the integral of the loss as a step function from 0 to `end`."""
    if not losses:
        return 0.0
    times = [0.0, *(one.at_s for one in losses[1:]), max(end, losses[-1].at_s)]
    spans = [after - before for before, after in pairwise(times)]
    return math.fsum(
        _known(one.loss) * span
        for one, span in zip(losses, spans, strict=True)
        if span > 0
    )


def _thinned(losses: Sequence[Measured]) -> Sequence[Measured]:
    if len(losses) <= POINTS:
        return losses
    step = (len(losses) - 1) / (POINTS - 1)
    return [losses[round(k * step)] for k in range(POINTS)]
