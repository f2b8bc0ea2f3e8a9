"""A job of somebody else's, and what reading a file of them came to."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a workload.

    Attributes:
        submitted: Seconds since the workload began.
        nodes: Nodes that it uses.
        runs: Seconds that it runs (never longer than `walltime`).
        walltime: Seconds that it asks for.
        waited: Seconds that it waited in the measured queue; None: not recorded.
    """

    submitted: float
    nodes: int
    runs: float
    walltime: float
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The jobs of a file, in order of submission.

    Attributes:
        jobs: The jobs; the first is submitted at 0.
        unreadable: Line number and words, for lines that could not be read.
        left_out: Jobs without a size or a time (cancelled in the queue, still there).
        gaps: From when to when nobody submitted anything for unusually long.
    """

    jobs: tuple[TraceJob, ...]
    unreadable: tuple[tuple[int, str], ...] = ()
    left_out: int = 0
    gaps: tuple[tuple[float, float], ...] = field(default=())
