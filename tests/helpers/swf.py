"""Workload files for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Row = tuple[float, float, int, float]
"""Submit time, run time, processors, walltime."""


def swf_line(
    submit: float, runs: float, processors: int, walltime: float, **other: float
) -> str:
    """Return a line in Standard Workload Format; what is not given is unknown."""
    fields = {
        "job": 1, "submit": submit, "wait": -1, "run": runs, "allocated": processors,
        "cpu": -1, "memory": -1, "asked": -1, "time": walltime, "asked_memory": -1,
        "status": 1, "user": -1, "group": -1, "program": -1, "queue": -1,
        "partition": -1, "before": -1, "think": -1,
    }  # fmt: skip
    assert other.keys() <= fields.keys()
    return " ".join(f"{value:g}" for value in {**fields, **other}.values())


def write_swf(path: Path, rows: Iterable[Row]) -> Path:
    """Write a workload file."""
    lines = ["; Computer: made up", *(swf_line(*row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
