"""Jobs of others that are drawn.

What is known of the workloads of parallel machines, in its simplest form. Sizes are
spread evenly over their logarithm and are mostly powers of two (U. Lublin and D. G.
Feitelson, Journal of Parallel and Distributed Computing 63(11), 2003). Run times are
spread over orders of magnitude, here lognormal. Walltimes are overestimated and round
(D. Tsafrir, Y. Etsion and D. G. Feitelson, Job Scheduling Strategies for Parallel
Processing, 2005). More jobs come by day than by night.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from math import ceil, cos, log, pi

import numpy as np

from hansa.simulator.workload.base import TraceJob
from hansa.spec.simulation import SyntheticWorkload

PEAK_HOUR = 14.0
"""Hour of the day at which most jobs come."""
QUARTER = 900.0
"""People ask for quarters of an hour."""

_BLOCK = 256


def draw_jobs(
    spec: SyntheticWorkload, nodes: int, seed: int, start_hour: float, begins: float
) -> Iterator[TraceJob]:
    """Draw jobs without an end, in order of submission.

    They come as a Poisson process whose rate is such that ``rate E[nodes] E[runs] =
    load nodes``, times ``1 + day_swing cos(2 pi (hour - 14) / 24)``: drawn at the
    highest rate, and thinned (P. A. W. Lewis and G. S. Shedler, Naval Research
    Logistics Quarterly 26(3), 1979). The walltime asked is the run time times
    ``1 + (overestimate - 1) e`` with e standard exponential, rounded up to a quarter
    of an hour.

    Args:
        spec: Their numbers.
        nodes: Nodes of the machine.
        seed: Where the draws begin.
        start_hour: Hour of the day at time 0.
        begins: Seconds from time 0 to the first moment, mostly negative.
    """
    rng = np.random.default_rng(seed)
    sizes = node_counts(max(1, int(spec.largest * nodes)))
    shares = list(accumulate(sizes.values()))
    counts = list(sizes)
    mean_nodes = sum(count * share for count, share in sizes.items())
    rate = spec.load * nodes / (mean_nodes * spec.mean_time)
    swing, highest = spec.day_swing, 1.0 + spec.day_swing
    location = log(spec.mean_time) - spec.sigma**2 / 2.0
    at = begins
    while True:
        spans = rng.standard_exponential(_BLOCK) / (rate * highest)
        kept = rng.random(_BLOCK) * highest
        runs = np.exp(location + spec.sigma * rng.standard_normal(_BLOCK))
        asked = runs * (
            1.0 + (spec.overestimate - 1.0) * rng.standard_exponential(_BLOCK)
        )
        which = rng.random(_BLOCK)
        for span, luck, run, time, size in zip(
            spans.tolist(), kept.tolist(), runs.tolist(), asked.tolist(),
            which.tolist(), strict=True,
        ):  # fmt: skip
            at += span
            hour = start_hour + at / 3600.0
            if luck < 1.0 + swing * cos(2.0 * pi * (hour - PEAK_HOUR) / 24.0):
                count = counts[min(bisect(shares, size), len(counts) - 1)]
                yield TraceJob(at, count, run, ceil(time / QUARTER) * QUARTER)


def node_counts(largest: int) -> dict[int, float]:
    """Return the sizes of jobs and how often each comes.

    Powers of two, and a third as often what lies in the middle between two of them; all
    up to the largest.
    """
    weights: dict[int, int] = {}
    power = 1
    while power <= largest:
        weights[power] = 3
        if power > 1 and power * 3 // 2 <= largest:
            weights[power * 3 // 2] = 1
        power *= 2
    total = sum(weights.values())
    return {count: weight / total for count, weight in sorted(weights.items())}
