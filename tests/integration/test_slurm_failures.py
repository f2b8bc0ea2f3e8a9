"""Slurm clusters in trouble: every update is accounted for once all the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from runs import PATIENCE_S, Bench, until
from slurm import Cluster
from towns import (
    Clusters,
    Town,
    check_accounts,
    federate,
    fill,
    node_seconds,
    slurm_town,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

LONG = 40_000
"""Steps that take some seconds: time enough for trouble."""

HANG = """\
import ctypes, pathlib, threading, time

flag = pathlib.Path({flag!r})

def hang():
    while True:
        time.sleep(0.02)
        try:
            flag.rename(flag.with_suffix(".taken"))
        except OSError:
            continue
        # Called without giving up the interpreter's lock: nothing in this process goes
        # on, its signal handlers neither, as in a library that waits for ever.
        ctypes.PyDLL(None).sleep(3600)

threading.Thread(target=hang, daemon=True).start()
"""


def can_hang(bench: Bench, town: Town) -> Path:
    """Let a worker of this facility hang; return the file whose being there says so."""
    folder = bench.root / "hang"
    folder.mkdir()
    flag = folder / "now"
    (folder / "sitecustomize.py").write_text(HANG.format(flag=str(flag)))
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    town.site = {**town.site, "environment": {"variables": {"PYTHONPATH": path}}}
    return flag


def has_checkpoint(bench: Bench, name: str) -> bool:
    """Tell whether the facility's first training job has saved its state."""
    job = bench.root / f"mailboxes/{name}/r/jobs/train-0001-{name}-1.1"
    return any(entry.name[0] != "." for entry in job.glob("checkpoint/*"))


def slurm_id(bench: Bench, name: str) -> str:
    """Return Slurm's id of the facility's first training job."""
    (event,) = [
        event
        for event in bench.events("JobQueued")
        if event["assignment"] == f"train-0001-{name}-1" and event["number"] == 1
    ]
    return str(event["job"])


def preempt(cluster: Cluster) -> None:
    """Take all nodes for a while, for somebody more important."""
    nodes = f"--nodes={cluster.nodes}"
    cluster.submit("exec sleep 2", "--partition=high", nodes, "--exclusive")


def lose_node(bench: Bench, cluster: Cluster) -> None:
    """Set the first node of the facility's first training job DOWN."""
    job = slurm_id(bench, cluster.name)
    nodes = cluster.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.set_down(cluster.run("scontrol", "show", "hostnames", nodes).split()[0])


def requeued(bench: Bench, name: str) -> list[dict[str, Any]]:
    return [
        event
        for event in bench.events("JobRequeued")
        if event["assignment"] == f"train-0001-{name}-1"
    ]


def test_one_federation_with_all_the_trouble_that_clusters_have(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters("amsterdam", "bergen", "danzig")
    towns = {name: slurm_town(cluster, LONG) for name, cluster in made.items()}
    towns["bergen"].job = {"nodes": 2, "time": "0:01:00"}
    flag = can_hang(bench, towns["bergen"])
    federate(bench, towns, rounds=2)
    for number, cluster in enumerate(made.values()):
        fill(cluster, seed=number)
    first = bench.start("run", "federation.yaml", "--id", "r")

    # As soon as each of them trains. Bergen's worker hangs: Slurm ends it by its
    # walltime, while all the rest happens.
    troubles = {
        "amsterdam": lambda: preempt(made["amsterdam"]),
        "bergen": flag.touch,
        "danzig": lambda: lose_node(bench, made["danzig"]),
    }
    while troubles:
        ready = until(lambda: [n for n in troubles if has_checkpoint(bench, n)])
        troubles.pop(ready[0])()
    until(lambda: not flag.exists())
    until(lambda: requeued(bench, "danzig") and requeued(bench, "amsterdam"))

    # Danzig's controller dies; its jobs and its nodes live on.
    wait_until_saved(made["danzig"])
    made["danzig"].kill_controller(hard=True)
    # The coordinator is killed meanwhile and taken up again.
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = bench.start("run", "--resume", "r")
    until(lambda: bench.events("RunResumed"))
    made["danzig"].start_controller()
    _, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, err

    check_accounts(bench, made, rounds=2)
    ends = {
        (e["assignment"], e["number"]): e["state"] for e in bench.events("JobEnded")
    }
    assert ends["train-0001-bergen-1", 1] == "TIMEOUT"
    assert ends["train-0001-bergen-1", 2] == "DONE"
    log = bench.root / "mailboxes/bergen/r/jobs/train-0001-bergen-1.2/log.txt"
    assert "Going on from" in log.read_text()
    report = bench.data("report", "r")
    for name, cluster in made.items():
        check_charges(cluster, report["facilities"][name])


def check_charges(cluster: Cluster, figures: dict[str, Any]) -> None:
    """Compare the node-hours of a report with what the cluster has on record.

    There a requeued job ended when that was asked for; it is charged until it is gone.
    """
    ending = cluster.nodes * 6  # node-seconds
    charged = figures["node_hours"] * 3600
    assert charged == pytest.approx(node_seconds(cluster), abs=ending)


def test_a_preempted_job_goes_on_where_it_was(bench: Bench, clusters: Clusters) -> None:
    (cluster,) = clusters("amsterdam", nodes=2).values()
    federate(bench, {"amsterdam": slurm_town(cluster, LONG)}, rounds=1)
    run = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: has_checkpoint(bench, "amsterdam"))
    preempt(cluster)
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    check_accounts(bench, ["amsterdam"], rounds=1)
    assert requeued(bench, "amsterdam")
    (figures,) = bench.data("report", "r")["facilities"].values()
    assert figures["requeues"] >= 1
    check_charges(cluster, figures)
    (update,) = bench.events("UpdateArrived")
    assert update["partial"] or update["steps"] == LONG


def wait_until_saved(cluster: Cluster) -> None:
    """Wait until the controller has written down what it knows by now.

    It does so within seconds of a change. One that is killed before has forgotten the
    last jobs when it comes back, and gives their ids away again.
    """
    saved, since = cluster.dir / "state/job_state", time.time()

    def is_newer() -> bool:
        try:
            return saved.stat().st_mtime > since
        except FileNotFoundError:  # it is being replaced
            return False

    other = cluster.submit("true", "--hold")
    until(is_newer)
    cluster.run("scancel", other)


def test_a_controller_that_dies_and_comes_back_is_waited_for(
    bench: Bench, clusters: Clusters
) -> None:
    (cluster,) = clusters("amsterdam").values()
    federate(bench, {"amsterdam": slurm_town(cluster, 2 * LONG)}, rounds=1)
    run = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: has_checkpoint(bench, "amsterdam"))
    wait_until_saved(cluster)
    cluster.kill_controller(hard=True)
    update = bench.root / "mailboxes/amsterdam/r/updates/train-0001-amsterdam-1"
    until((update / "manifest.json").exists)
    cluster.start_controller()
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    check_accounts(bench, ["amsterdam"], rounds=1)


def test_a_deleted_job_is_given_up_and_a_held_one_is_shown(
    bench: Bench, clusters: Clusters
) -> None:
    made = clusters("amsterdam", "bergen", nodes=2)
    towns = {name: slurm_town(cluster, LONG) for name, cluster in made.items()}
    federate(bench, towns, rounds=1)
    cluster = made["bergen"]
    blocker = cluster.submit("exec sleep 100", "--nodes=2", "--exclusive")
    run = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: [e for e in bench.events("JobQueued") if e["facility"] == "bergen"])
    cluster.run("scontrol", "hold", slurm_id(bench, "bergen"))
    until(lambda: "held" in bench.hansa("status", "r").lower())
    cluster.run("scancel", slurm_id(bench, "bergen"))
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 6, err
    (failure,) = bench.events("AssignmentFailed")
    assert failure["facility"] == "bergen"
    assert "deleted" in failure["reason"]
    cluster.run("scancel", blocker)
