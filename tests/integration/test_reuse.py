"""Allocations that are used again: `linger` and `queue_ahead` on busy queues."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
from busy import busy
from runs import Bench
from slurm import Cluster
from towns import (
    Clusters,
    batch_jobs,
    check_accounts,
    federate,
    idle_gaps,
    node_seconds,
    slurm_town,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROUNDS = 5


def test_a_lingering_job_waits_in_the_queue_once_not_five_times(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters("amsterdam", "bergen", nodes=2)
    towns = {name: slurm_town(cluster) for name, cluster in made.items()}
    towns["amsterdam"].plan = towns["bergen"].plan = {"linger": "1m"}
    federate(bench, towns, rounds=ROUNDS)
    with (
        busy(made["amsterdam"], waiting=1, seconds=3, nodes=2),
        busy(made["bergen"], waiting=1, seconds=3, nodes=2),
    ):
        bench.hansa("run", "federation.yaml", "--id", "r")

    check_accounts(bench, made, rounds=ROUNDS)
    for name, figures in bench.data("report", "r")["facilities"].items():
        assert len(batch_jobs(bench, name)) == figures["queue_waits"] == 1
        assert figures["hosted"] >= ROUNDS - 1
        assert figures["queue_wait_s"] > 1
        assert figures["node_hours"] > figures["node_hours_idle"] > 0
        assert figures["node_hours"] * 3600 == pytest.approx(node_seconds(made[name]))
    (end,) = [e for e in bench.events("JobEnded") if e["facility"] == "bergen"]
    assert end["state"] == "DONE"


def run_alone(bench: Bench, cluster: Cluster, run: str, ahead: bool) -> dict[str, Any]:
    """Run three rounds at one facility whose queue is never empty."""
    town = slurm_town(cluster, 15_000)
    town.plan = {"queue_ahead": "1m"} if ahead else {}
    federate(bench, {cluster.name: town}, rounds=3)
    with busy(cluster, waiting=2, seconds=3, nodes=2):
        return bench.data("run", "federation.yaml", "--id", run)


def test_queue_ahead_shortens_the_gap_between_jobs(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters("amsterdam", nodes=4)
    (cluster,) = made.values()
    without = run_alone(bench, cluster, "without", ahead=False)
    ahead = run_alone(bench, cluster, "ahead", ahead=True)

    gap = fmean(idle_gaps(bench, "amsterdam", "without"))
    assert fmean(idle_gaps(bench, "amsterdam", "ahead")) < 0.8 * gap
    before, after = (each["facilities"]["amsterdam"] for each in (without, ahead))
    assert before["ahead"] == 0
    assert after["ahead"] >= 1
    assert after["gap_s"] < 0.8 * before["gap_s"]
    assert after["node_hours_idle"] > 0
    assert after["node_hours"] * 3600 == pytest.approx(node_seconds(cluster, "ahead"))
