"""Learning rates that change over all rounds of a facility."""

from __future__ import annotations

import math

from hansa.worker.llm_options import ScheduleOptions


def factor(schedule: ScheduleOptions | None, position: int) -> float:
    """Return the share of the learning rate that a step has.

    It rises evenly over the warm-up, whose last step has all of it, and then falls to
    `least`, which the step after the last one would have; later ones have it, too::

        warm-up:  (position + 1) / warmup
        then:     least + (1 - least) * fall((position - warmup) / (steps - warmup))
        linear:   fall(x) = 1 - x
        cosine:   fall(x) = (1 + cos(pi x)) / 2     (arXiv 1608.03983, one period)

    Args:
        schedule: What the facility chose; None: all of it, always.
        position: Steps that the facility has done before, in all rounds.
    """
    if schedule is None:
        return 1.0
    if position < schedule.warmup:
        return (position + 1) / schedule.warmup
    span = max(1, schedule.steps - schedule.warmup)
    x = min(1.0, (position - schedule.warmup) / span)
    fall = 1 - x if schedule.shape == "linear" else (1 + math.cos(math.pi * x)) / 2
    return schedule.least + (1 - schedule.least) * fall
