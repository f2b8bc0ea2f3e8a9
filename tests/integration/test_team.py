"""Ranks on two nodes of a real Slurm train one model, and one of them is killed."""

from __future__ import annotations

import json
import os
from datetime import datetime

import pytest
import toy_team
from runs import Bench
from towns import SRUN, Clusters, federate, slurm_records, slurm_town

from hansa.store.manifest import read_update_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_killed_rank_ends_the_job_and_the_next_one_goes_on(
    bench: Bench, clusters: Clusters
) -> None:
    (cluster,) = clusters("amsterdam", nodes=2).values()
    town = slurm_town(cluster)
    # Slurm leaves the other ranks alone: it is Hansa that ends them.
    town.launch = SRUN.replace(" --kill-on-bad-exit=1", "")
    mailbox = bench.root / "mailboxes/amsterdam/r"
    jobs = [mailbox / f"jobs/train-0001-amsterdam-1.{number}" for number in (1, 2)]
    plan = {"rank": 1, "call": 9, "do": "kill", "when": f"{jobs[0]}/checkpoint/0*"}
    found = toy_team.variables(bench.root / "package")
    variables = {**found, "TOY": json.dumps({**plan, "once": f"{bench.root}/once"})}
    town.site = {"checkpoint": "0.001", "environment": {"variables": variables}}
    model = {"trainer": "toy", "source": "zeros", "dtype": "float32"}
    federate(bench, {"amsterdam": town}, rounds=1, more={"model": model})
    bench.without_pictures()
    bench.environment["PYTHONPATH"] += os.pathsep + found["PYTHONPATH"]
    bench.hansa("run", "federation.yaml", "--id", "r")

    first, second = ((job / "log.txt").read_text() for job in jobs)
    error = json.loads((jobs[0] / "status.json").read_text())["error"]
    words = (
        "Rank 1 on amsterdam2 has ended without a word. "
        f"Its log is {jobs[0] / 'rank-0001.log'}."
    )
    assert (error["message"], error["transient"]) == (words, True)
    assert words in first
    assert "Rank 1 of 2" in (jobs[0] / "rank-0001.log").read_text()
    assert "Going on from" in second
    update = read_update_manifest(bench.root / "runs/r/updates/train-0001-amsterdam-1")
    assert (update.steps, update.samples, update.partial) == (20, 640, False)
    assert update.training == {"sharding": "toy"}
    records = {one["Name"]: one for one in slurm_records(cluster)}
    killed = records["hansa.r.train-0001-amsterdam-1.1"]
    end = datetime.fromisoformat(killed["EndTime"]).timestamp()
    assert end - (bench.root / "once").stat().st_mtime < 30
