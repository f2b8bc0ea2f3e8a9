"""Spans in a workload in which nobody submitted anything: a log was lost, or a machine.

Simulated as it stands, such a span would empty the machine, and the next jobs would not
wait at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from hansa.simulator.workload.base import TraceJob, Workload

DAY = 86400.0
UNUSUAL = 20.0
"""Times the span that 95 of 100 spans between two submissions do not exceed."""


def find_gaps(times: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the spans between submissions that are unusually long.

    That is longer than a day, and than 20 times the 95th percentile of all spans: a
    quiet weekend of a machine with few users is none. Were submissions a Poisson
    process, about one span in 10^26 would be that long.

    Args:
        times: When jobs were submitted, in seconds, in order.
    """
    spans = sorted(later - earlier for earlier, later in pairwise(times))
    if not spans:
        return ()
    usual = spans[int(0.95 * (len(spans) - 1))]
    longest = max(DAY, UNUSUAL * usual)
    return tuple(pair for pair in pairwise(times) if pair[1] - pair[0] > longest)


def repeat(workload: Workload, nodes: int, begins: float) -> Iterator[TraceJob]:
    """Submit a workload's jobs again and again, for ever, without its gaps.

    Of a gap whole days are taken out, so that each hour's jobs still come at that hour.
    After the last job the first comes after the mean time between two jobs.

    Args:
        workload: The jobs.
        nodes: Nodes of the machine.
        begins: When the first is submitted.
    """
    jobs = tuple(_without_gaps(workload))
    span = jobs[-1].submitted
    if span > 0:
        period = span + span / (len(jobs) - 1)
    else:  # all at once: again when the machine can be through with them
        asked = sum(job.nodes * job.walltime for job in jobs) / nodes
        period = max(asked, *(job.walltime for job in jobs))
    while True:
        for job in jobs:
            yield replace(job, submitted=begins + job.submitted)
        begins += period


def _without_gaps(workload: Workload) -> Iterator[TraceJob]:
    gaps = iter(workload.gaps)
    gap = next(gaps, None)
    taken_out = 0.0
    for job in workload.jobs:
        while gap is not None and job.submitted >= gap[1]:
            taken_out += (gap[1] - gap[0]) // DAY * DAY
            gap = next(gaps, None)
        yield replace(job, submitted=job.submitted - taken_out) if taken_out else job
