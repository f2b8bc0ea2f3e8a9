"""Federations of facilities with batch systems, and what must hold of their runs.

Files are written as JSON, which is YAML.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from runs import Bench
from slurm import Cluster

Clusters = Callable[..., dict[str, Cluster]]
"""Starts Slurm clusters: ``clusters('amsterdam', 'bergen', nodes=4)``."""

SRUN = (
    "srun --kill-on-bad-exit=1 --nodes={nodes} --ntasks={ranks} "
    "--ntasks-per-node={ranks_per_node}"
)


@dataclass(kw_only=True)
class Town:
    """One facility of a test: its own file, and its part of the experimenter's.

    Attributes:
        scheduler: `scheduler` of its site.yaml.
        launch: `environment.launch` of its site.yaml.
        site: More keys of its site.yaml.
        job: What each batch job asks for.
        steps: Steps of an assignment.
        plan: More keys of its part of the federation.
    """

    scheduler: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "local", "slots": 2}
    )
    launch: str = ""
    site: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 20
    plan: Mapping[str, Any] = field(default_factory=dict)

    def site_file(self, name: str) -> dict[str, Any]:
        """Return the facility's site.yaml."""
        environment = {"python": sys.executable, "launch": self.launch}
        more = dict(self.site)
        environment.update(more.pop("environment", {}))
        return {
            "name": name,
            "scheduler": self.scheduler,
            "mailbox": f"mailboxes/{name}",
            "cache": "cache",
            "heartbeat": "0.2",
            "checkpoint": "0.5",
            "poll": {"first": "0.3s", "longest": "1s"},
            "tasks": {"digits": {}},
            "environment": environment,
            **more,
        }

    def part(self, name: str, number: int) -> dict[str, Any]:
        """Return the facility's part of federation.yaml."""
        return {
            "gateway": {"type": "local", "site": f"{name}.yaml"},
            "mover": "posix",
            "data": f"part-{number}",
            "job": {"nodes": 1, "time": "0:05:00", **self.job},
            "work": {"steps": self.steps, "batch": 32, "lr": 0.5},
            **self.plan,
        }


def federate(
    bench: Bench,
    towns: Mapping[str, Town],
    rounds: int = 2,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write federation.yaml and the site files of a federation on the digits.

    Args:
        bench: Where.
        towns: The facilities, by name.
        rounds: Number of global versions.
        more: More keys of the federation.
    """
    for name, town in towns.items():
        (bench.root / f"{name}.yaml").write_text(json.dumps(town.site_file(name)))
    plan = {
        "name": "digits",
        "seed": 7,
        "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
        "task": "digits",
        "strategy": {"name": "fedavg"},
        "stop": {"rounds": rounds},
        "evaluation": {"every": rounds},
        "patience": "120s",
        "facilities": {
            name: town.part(name, number)
            for number, (name, town) in enumerate(towns.items())
        },
        **(more or {}),
    }
    (bench.root / "federation.yaml").write_text(json.dumps(plan, indent=1))


def check_accounts(
    bench: Bench, names: Iterable[str], rounds: int, run: str = "r"
) -> None:
    """Check that every update arrived once and was used once, and that replay agrees.

    Args:
        bench: Where the run is.
        names: The facilities, all of which take part in every round.
        rounds: Number of global versions.
        run: Id of the run.
    """
    expected = {f"train-{r + 1:04}-{name}-1" for r in range(rounds) for name in names}
    events = bench.events("UpdateArrived", run)
    arrived = Counter(event["assignment"] for event in events)
    used = Counter(
        term["ref"].removeprefix("update/")
        for event in bench.events("VersionPublished", run)
        for term in event["terms"]
        if term["ref"].startswith("update/")
    )
    assert arrived == used == Counter(expected)
    queued = Counter(
        (event["assignment"], event["number"])
        for event in bench.events("JobQueued", run)
    )
    assert set(queued.values()) == {1}
    assert not bench.events("AssignmentFailed", run)
    assert bench.data("replay", run)["same"]


def batch_jobs(bench: Bench, name: str) -> list[dict[str, Any]]:
    """Return the journal's batch jobs of a facility: not the orders they took on."""
    return [
        event
        for event in bench.events("JobQueued")
        if event["facility"] == name and not event["host"]
    ]


def idle_gaps(bench: Bench, name: str, run: str = "r") -> list[float]:
    """Return the seconds between one training and the next of a facility."""
    starts = {e["assignment"]: e["at"] for e in bench.events("JobStarted", run)}
    ends = {e["assignment"]: e["at"] for e in bench.events("UpdateArrived", run)}
    times = sorted(
        (starts[key], end) for key, end in ends.items() if f"-{name}-" in key
    )
    return [start - end for (_, end), (start, _) in pairwise(times)]


def slurm_town(cluster: Cluster, steps: int = 20) -> Town:
    """Return a facility over a Slurm cluster, with `srun` over two of its nodes."""
    return Town(
        scheduler={"type": "slurm", "conf": str(cluster.conf)},
        launch=SRUN,
        job={"nodes": 2},
        steps=steps,
    )


def fill(cluster: Cluster, seed: int) -> None:
    """Fill a cluster with the jobs of others: first all of its nodes."""
    whole = f"--nodes={cluster.nodes}"
    cluster.submit("exec sleep 3", whole, "--exclusive", "--time=1")
    cluster.load(4, seconds=2, seed=seed)


def slurm_records(cluster: Cluster, run: str = "r") -> list[dict[str, str]]:
    """Return what the cluster's own accounting has of a run's jobs, by its words."""
    path = cluster.path / "log/jobcomp.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return [one for one in records if one["Name"].startswith(f"hansa.{run}.")]


def node_seconds(cluster: Cluster, run: str = "r") -> float:
    """Return what a run's jobs were charged by the cluster's own accounting."""
    total = 0.0
    for record in slurm_records(cluster, run):
        start, end = (
            datetime.fromisoformat(record[key]) for key in ("StartTime", "EndTime")
        )
        total += (end - start).total_seconds() * int(record["NodeCnt"])
    return total


def check_ranks(bench: Bench, name: str, job: str) -> None:
    """Check that a process on each of the two nodes reported, and kept its own log."""
    folder = bench.root / f"mailboxes/{name}/r/jobs/{job}"
    assert len(list(folder.glob("ranks/*/*.json"))) == 2
    assert (folder / "rank-0001.log").read_text()
