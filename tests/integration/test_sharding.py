"""Many ranks over `srun` train what one process trains, however the model is spread.

Three batch jobs in a real Slurm: one process; a team on two nodes that works on order
after order in its allocation, each with another back end; and four ranks that are
killed half way, whose order then goes on with two.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from runs import Bench, until
from slurm import Cluster
from towns import SRUN, Clusters, Town

from hansa.mailbox.paths import Mailbox
from hansa.site import rpc
from hansa.site.agent import Agent
from hansa.spec.site import load_site
from hansa.store.folder import reader
from hansa.store.manifest import read_update_manifest
from hansa.store.versions import Store
from hansa.worker import checkpoint
from hansa.worker.initial import Request, write_initial

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RUN, TOWN = "r", "amsterdam"
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "zero1": "DistributedDataParallel",
    "fsdp": "FSDPLlama",
    "deepspeed-1": "DeepSpeedEngine",
    "deepspeed-2": "DeepSpeedEngine",
    "deepspeed-3": "DeepSpeedEngine",
}
SPREAD = tuple(WRAPPERS)
STEPS, BATCH, LR = 16, 10, 2e-3
MODEL = {
    "trainer": "causal-lm",
    "source": "tiny-llama",
    "dtype": "float32",
    "options": {"hidden": 20, "layers": 2, "heads": 2, "vocabulary": 270},
}
WORK = {
    "batch": BATCH,
    "lr": LR,
    "micro_batch": 3,
    "sequence_length": 48,
    "weight_decay": 0.1,
}
LOSS = {"rtol": 0, "atol": 2e-6}
WEIGHT = {"rtol": 0, "atol": 5e-6}
"""Sums of float32 in another order. Losses fall from 5 to 3, and weights move by up to
`STEPS * LR`; other samples, or another order of them, would show at once."""


@dataclass(frozen=True)
class Lab:
    """One facility, asked as the server asks it.

    Attributes:
        agent: Its site agent.
        mailbox: Of the run.
        cluster: Its Slurm.
    """

    agent: Agent
    mailbox: Mailbox
    cluster: Cluster

    def submit(self, name: str, sharding: str, job: Mapping[str, Any]) -> str:
        """Ask for job ``<order>.<number>``; return the batch job that works on it."""
        assignment, _, number = name.partition(".")
        order = {
            "schema": 1,
            "run": RUN,
            "assignment": f"train-0001-{TOWN}-{assignment}",
            "kind": "train",
            "facility": TOWN,
            "round": 1,
            "steps": STEPS,
            "seed": 11,
            "model": MODEL,
            "task": {"name": "instruct"},
            "work": {**WORK, "sharding": sharding},
            "update": {"dtype": "float32"},
            "evaluate": True,
        }
        asked = {"time": 600, "linger": 0, **job}
        request = rpc.submit(RUN, order, int(number), asked)
        return str(rpc.unwrap(self.agent.handle(request))["job"])

    def job_dir(self, name: str) -> Path:
        assignment, _, number = name.partition(".")
        key = f"train-0001-{TOWN}-{assignment}"
        return self.mailbox.job(key, int(number)).path

    def status(self, name: str) -> dict[str, Any]:
        path = self.job_dir(name) / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def done(self, name: str) -> bool:
        """Tell whether a job has delivered; fails with its log if it has failed."""
        status = self.status(name)
        if status.get("phase") == "failed":
            logs = sorted(self.job_dir(name).glob("*.log"))
            logs += sorted(self.job_dir(name).glob("log.txt"))
            pytest.fail("\n".join(path.read_text()[-3000:] for path in logs))
        return (self.update(name) / "manifest.json").exists()

    def update(self, name: str) -> Path:
        return self.mailbox.update(f"train-0001-{TOWN}-{name.partition('.')[0]}")

    def result(self, name: str) -> tuple[Any, dict[str, np.ndarray]]:
        """Return what a job has delivered: the manifest, and the update's tensors."""
        until(lambda: self.done(name))
        update = self.update(name)
        with reader(update) as folder:
            tensors = {one: folder.read(one) for one in folder.names}
        return read_update_manifest(update), tensors


@pytest.fixture
def lab(bench: Bench, clusters: Clusters) -> Lab:
    cluster = clusters(TOWN, nodes=5)[TOWN]
    data = bench.root / "data"
    write_data(data)
    town = Town(
        scheduler={"type": "slurm", "conf": str(cluster.conf)},
        launch=SRUN,
        site={
            "tasks": {"instruct": {"data": str(data)}},
            "limits": {"linger": "10m"},
            "checkpoint": "0.001",
            "heartbeat": "0.01",
            "environment": {"variables": {"OMP_NUM_THREADS": "1"}},
        },
    )
    path = bench.root / f"{TOWN}.yaml"
    path.write_text(json.dumps(town.site_file(TOWN)))
    mailbox = Mailbox(bench.root / "mailboxes" / TOWN, RUN)
    publish(bench.root, data, mailbox)
    return Lab(Agent(load_site(path)), mailbox, cluster)


def write_data(folder: Path) -> None:
    """Write questions whose answers differ in length: ranks have unlike work."""
    folder.mkdir()
    for split, count in (("train", 90), ("test", 7)):
        lines = [
            {"prompt": f"Count to {n % 9 + 1}", "completion": "i" * (n % 9 + 1)}
            | {"group": "count"}
            for n in range(count)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)


def publish(root: Path, data: Path, mailbox: Mailbox) -> None:
    """Make version 0 as a server does, and put it into the mailbox."""
    task = {"name": "instruct", "source": str(data), "cache": str(root / "made-cache")}
    request = {"model": MODEL, "task": task, "work": WORK, "seed": 5}
    write_initial(Request.model_validate(request), root / "made")
    store = Store(root / "store", "float32")
    store.import_initial(root / "made")
    target = mailbox.version(0)
    target.parent.mkdir(parents=True)
    store.version_dir(0).rename(target)
    (mailbox.path / "versions/latest.json").write_text(json.dumps({"version": 0}))


def present(lab: Lab, name: str) -> list[dict[str, Any]]:
    """Return what the ranks of a launch have said of themselves, in order."""
    files = sorted(lab.job_dir(name).glob("ranks/*/?.json"))
    return [json.loads(path.read_text()) for path in files]


def kill_half_way(lab: Lab, name: str) -> int:
    """Kill all ranks once there is a checkpoint; return how many steps it has."""

    def saved() -> list[int]:
        folder = lab.job_dir(name) / "checkpoint"
        return [int(p.name) for p in folder.glob("[0-9]*")] if folder.is_dir() else []

    until(lambda: lab.done(name) or saved())
    ranks = present(lab, name)
    assert [rank["rank"] for rank in ranks] == [0, 1, 2, 3]
    assert {rank["host"] for rank in ranks} <= set(lab.cluster.node_names)
    for rank in ranks:
        with suppress(ProcessLookupError):  # the others' end may have ended it
            os.kill(rank["pid"], signal.SIGKILL)
    key = f"train-0001-{TOWN}-{name.partition('.')[0]}"
    _, progress = next(iter(checkpoint.saved(lab.mailbox, key, 1)))
    assert not lab.update(name).exists(), "it was quicker than this test"
    return progress.step


def test_all_ways_to_spread_a_model_train_what_one_process_trains(lab: Lab) -> None:
    lab.submit("1.1", "none", {"nodes": 1})
    four = lab.submit("2.1", "fsdp", {"nodes": 2, "ranks_per_node": 2})
    two = {"nodes": 2, "ranks_per_node": 1, "linger": 300}
    hosts = {lab.submit(f"{3 + n}.1", one, two) for n, one in enumerate(SPREAD[:4])}
    before = kill_half_way(lab, "2.1")
    lab.cluster.wait(four, "FAILED", "CANCELLED", "COMPLETED")
    until(lambda: lab.done("3.1"))
    hosts.add(lab.submit("2.2", "fsdp", two))  # the rest of it, with half the ranks
    until(lambda: lab.done("5.1"))
    hosts |= {lab.submit(f"{7 + n}.1", one, two) for n, one in enumerate(SPREAD[4:])}
    assert len(hosts) == 1, "all orders of two ranks are done by one team"

    ranks = present(lab, "3.1")
    assert [rank["launcher"] for rank in ranks] == ["srun", "srun"]
    assert len({rank["host"] for rank in ranks}) == 2

    manifest, update = lab.result("1.1")
    assert max(float(np.abs(delta).max()) for delta in update.values()) > 10 * LR
    assert manifest.metrics["train_loss"] - manifest.metrics["train_loss_last"] > 0.5
    names = {one: f"{3 + n}.1" for n, one in enumerate(SPREAD)}
    for sharding, name in {**names, "restarted": "2.2"}.items():
        other, tensors = lab.result(name)
        assert other.training["sharding"] == sharding.replace("restarted", "fsdp")
        assert other.training["wrapper"] == WRAPPERS[other.training["sharding"]]
        assert (other.steps, other.samples) == (STEPS, STEPS * BATCH)
        for key in ("train_loss", "train_loss_last", "eval_loss"):
            expected = manifest.metrics[key]
            assert_allclose(other.metrics[key], expected, err_msg=sharding, **LOSS)
        for key, delta in update.items():
            message = f"{sharding}: {key}"
            assert_allclose(tensors[key], delta, err_msg=message, **WEIGHT)
    assert 0 < before < STEPS
    assert f", step {before}." in (lab.job_dir("2.2") / "log.txt").read_text()
