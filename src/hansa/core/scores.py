"""Names of what generated answers score, among an evaluation's metrics.

An evaluation's manifest has numbers by name. ``exact/forward_synthesis`` is the score
`exact` of the task `forward_synthesis`; other metrics have no slash in their name.
"""

from __future__ import annotations

from collections.abc import Mapping

ANSWERS = "answers"
"""The score that only counts: how many answers the others are means over."""


def score_name(score: str, task: str) -> str:
    """Return the metric that a task's score is called."""
    return f"{score}/{task}"


def scores_by_task(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the scores among metrics, by task and name, tasks sorted."""
    found: dict[str, dict[str, float]] = {}
    for metric, value in metrics.items():
        score, slash, task = metric.partition("/")
        if slash:
            found.setdefault(task, {})[score] = value
    return dict(sorted(found.items()))
