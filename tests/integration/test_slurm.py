"""Federations over real Slurm clusters, side by side on this host."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest
from busy import busy
from runs import Bench
from slurm import Cluster
from towns import (
    Clusters,
    check_accounts,
    check_ranks,
    federate,
    node_seconds,
    slurm_records,
    slurm_town,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TOWNS = ("amsterdam", "bergen", "danzig")


def test_three_clusters_with_full_queues_and_srun_over_two_nodes(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters(*TOWNS)
    federate(bench, {name: slurm_town(made[name]) for name in TOWNS}, rounds=3)
    with ExitStack() as queues:
        for cluster in made.values():
            queues.enter_context(busy(cluster, waiting=1, seconds=2, nodes=4))
        summary = bench.data("run", "federation.yaml", "--id", "r")

    assert summary["outcome"] == "done"
    check_accounts(bench, TOWNS, rounds=3)
    losses = [v["eval_loss"] for v in summary["versions"] if v["eval_loss"] is not None]
    assert losses[-1] < losses[0]
    for name in TOWNS:
        figures = summary["facilities"][name]
        charged = node_seconds(made[name])
        assert charged > 0
        assert figures["node_hours"] * 3600 == pytest.approx(charged)
        assert figures["queue_wait_s"] > 0
    check_ranks(bench, "amsterdam", "train-0001-amsterdam-1.1")


LATE_SBATCH = """\
#!/bin/sh
# Accepts the first job, and says nothing of it.
case "$*" in *--test-only*) exec {real} "$@" ;; esac
{real} "$@" > "{folder}/$$.out" || exit
if mkdir "{folder}/first" 2>/dev/null; then
  {trouble}
fi
cat "{folder}/$$.out"
"""
TIMED_OUT = (
    "echo 'sbatch: error: Batch job submission failed: "
    "Socket timed out on send/recv operation' >&2; exit 1"
)
HANGS = "exec sleep 100"


def late_sbatch(folder: Path, cluster: Cluster, trouble: str) -> Path:
    """Make a folder of Slurm's commands whose first `sbatch` is accepted but silent."""
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
        real = cluster.run("sh", "-c", f"command -v {name}").strip()
        if name != "sbatch":
            (folder / name).symlink_to(real)
            continue
        text = LATE_SBATCH.format(
            real=shlex.quote(real), folder=folder, trouble=trouble
        )
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def test_a_submission_that_timed_out_but_was_accepted_is_found(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters("amsterdam", "bergen", nodes=2)
    troubles = {"amsterdam": TIMED_OUT, "bergen": HANGS}
    towns = {}
    for name, trouble in troubles.items():
        towns[name] = slurm_town(made[name])
        folder = late_sbatch(bench.root / f"{name}-bin", made[name], trouble)
        towns[name].scheduler = {**towns[name].scheduler, "bin": str(folder)}
    federate(bench, towns, rounds=1)
    bench.hansa("run", "federation.yaml", "--id", "r")

    check_accounts(bench, troubles, rounds=1)
    for name in troubles:
        names = [record["Name"] for record in slurm_records(made[name])]
        assert len(names) == len(set(names))
        assert f"hansa.r.train-0001-{name}-1.1" in names
        assert (bench.root / f"{name}-bin/first").is_dir()


def test_start_together_begins_rounds_when_all_jobs_run(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters("amsterdam", "bergen", nodes=2)
    towns = {name: slurm_town(cluster) for name, cluster in made.items()}
    federate(bench, towns, rounds=2, more={"start_together": "2m"})
    with busy(made["bergen"], waiting=2, seconds=3, nodes=2):
        bench.hansa("run", "federation.yaml", "--id", "r")

    check_accounts(bench, made, rounds=2)
    for number in (1, 2):
        mine = [
            event
            for event in bench.journal()
            if event.get("assignment", "").startswith(f"train-{number:04}-")
        ]
        waiting = [e["at"] for e in mine if e["type"] == "JobWaiting"]
        started = [e["at"] for e in mine if e["type"] == "JobStarted"]
        assert len(waiting) == len(started) == 2
        assert max(waiting) <= min(started)
