"""A facility where nobody may submit: its jobs run in a block that an endpoint holds.

Real endpoints of Globus Compute, in the sandbox; the block is a job of a real Slurm.
Its template is what `hansa site globus-endpoint --block` writes.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from globus import Sandbox, need_globus, sandbox
from runs import Bench, until
from slurm import Cluster
from towns import Clusters, Town, check_accounts, federate

from hansa.site.endpoint.block import COMPUTE, MPI, Block
from hansa.site.endpoint.kit import TEMPLATE, Endpoint, endpoint_files
from sandbox import endpoints
from sandbox.processes import kill

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

NAME = "danzig"
NODES = 2
LONG = 20_000
"""Steps that take some seconds: time enough for trouble."""
MPI_SRUN = (
    "srun --nodes={nodes} --ntasks={ranks} --ntasks-per-node={ranks_per_node} "
    "--nodelist=$PARSL_MPI_NODELIST"
)


@pytest.fixture
def globus(tmp_path: Path, clusters: Clusters) -> Iterator[Sandbox]:
    need_globus()
    with sandbox(tmp_path / "globus") as made:
        yield made


@dataclass
class Place:
    """The facility with its two endpoints, and whoever experiments with it."""

    bench: Bench
    globus: Sandbox
    cluster: Cluster

    def build(
        self,
        engine: str,
        launch: str = "",
        steps: int = 20,
        rounds: int = 2,
        template: Callable[[str], str] = str,
    ) -> None:
        """Register the function, start the endpoints, write the federation."""
        self.bench.environment.update(self.globus.env)
        function = self.bench.data("function", "register")["function"]
        site = self.bench.root / f"{NAME}.yaml"
        front = self.globus.add_endpoint("front", functions=[function], site=site)
        behind = self.globus.add_endpoint(
            "behind",
            functions=[function],
            environment={"SLURM_CONF": str(self.cluster.conf)},
            template=template(self._template(engine, site)),
        )
        gateway = {
            "type": "globus_compute",
            "endpoint": front.id,
            "function": function,
            "every": "1s",
            "block": {"endpoint": behind.id, "nodes": NODES, "engine": engine},
        }
        job = {"nodes": NODES if launch else 1, "time": "0:05:00"}
        town = Town(
            scheduler={"type": "block", "nodes": NODES, "stale": "10s"},
            launch=launch,
            job=job,
            steps=steps,
            plan={"gateway": gateway},
        )
        federate(self.bench, {NAME: town}, rounds=rounds)

    def _template(self, engine: str, site: Path) -> str:
        program = endpoints.program()
        assert program is not None
        files = endpoint_files(
            Endpoint(
                folder=self.bench.root / "behind",
                facility=NAME,
                function="0" * 8,
                program=program,
                hansa=Path(sys.executable).with_name("hansa"),
                site=site,
                commands=(Path(self.cluster.run("which", "sbatch").strip()).parent,),
                variables={"SLURM_CONF": str(self.cluster.conf)},
                block=Block(
                    engine=engine, batch="slurm", options={}, nodes=NODES, time=1800
                ),
            )
        )
        # How often it looks whether there is work: too rarely for a test.
        period = r"strategy_period: \d+\.\d"
        text, count = re.subn(period, "strategy_period: 0.5", files[TEMPLATE])
        assert count == 1
        return text

    def blocks(self) -> list[str]:
        """Return the ids of the Slurm jobs that are blocks and not over."""
        return self.cluster.run("squeue", "--noheader", "--format=%i").split()

    def kill(self, block: str) -> None:
        """End all that runs in a block with -9, as if its nodes had lost power."""
        kill([one for one in psutil.process_iter() if block_of(one, self) == block])

    def job(self, key: str) -> Path:
        return self.bench.root / f"mailboxes/{NAME}/r/jobs/{key}"


def block_of(process: psutil.Process, place: Place) -> str:
    """Return the id of the Slurm job that a process belongs to; empty: none."""
    try:
        said = process.environ()
    except psutil.Error:
        return ""
    ours = said.get("SLURM_CONF") == str(place.cluster.conf)
    return said.get("SLURM_JOB_ID", "") if ours else ""


@pytest.fixture
def place(bench: Bench, globus: Sandbox, clusters: Clusters) -> Place:
    (cluster,) = clusters(NAME, nodes=NODES).values()
    bench.without_pictures()
    return Place(bench, globus, cluster)


def test_a_federation_trains_in_a_block(place: Place) -> None:
    place.build(COMPUTE)
    summary = place.bench.data("run", "federation.yaml", "--id", "r")
    assert summary["outcome"] == "done"
    check_accounts(place.bench, [NAME], rounds=2)
    (figures,) = summary["facilities"].values()
    assert figures["node_hours"] > 0
    assert figures["queue_wait_s"] > 0
    assert len(place.blocks()) == 1  # the same for all jobs; not yet given back


def test_an_mpi_engine_says_where_the_ranks_go(place: Place) -> None:
    place.build(MPI, launch=MPI_SRUN)
    place.bench.hansa("run", "federation.yaml", "--id", "r")
    check_accounts(place.bench, [NAME], rounds=2)
    folder = place.job(f"train-0001-{NAME}-1.1")
    present = [json.loads(path.read_text()) for path in folder.glob("ranks/*/*.json")]
    assert {one["host"] for one in present} == set(place.cluster.node_names)


def test_a_job_goes_on_in_the_next_block_when_its_block_is_gone(place: Place) -> None:
    place.build(COMPUTE, steps=LONG, rounds=1)
    run = place.bench.start("run", "federation.yaml", "--id", "r")
    key = f"train-0001-{NAME}-1"
    until(lambda: checkpoints(place.job(f"{key}.1")), 200)
    (block,) = place.blocks()
    place.kill(block)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, f"{out}\n{err}"
    ended = {
        (event["assignment"], event["number"]): event["state"]
        for event in place.bench.events("JobEnded")
    }
    assert (ended[key, 1], ended[key, 2]) == ("NODE_FAIL", "DONE")
    (arrived,) = place.bench.events("UpdateArrived")
    assert (arrived["assignment"], arrived["steps"]) == (key, LONG)
    log = (place.job(f"{key}.2") / "log.txt").read_text()
    (resumed,) = re.findall(r"Going on from .*, step (\d+)", log)
    assert 0 < int(resumed) < LONG


def test_an_endpoint_that_holds_no_block_is_told_where_people_look(
    place: Place,
) -> None:
    """The block's template lacks what makes it one; nothing runs on a login node."""
    place.build(COMPUTE, template=no_block)
    run = place.bench.start("run", "federation.yaml", "--id", "r")

    live = place.bench.root / "runs/r/live.json"
    until(lambda: live.exists() and "HANSA_BLOCK does not" in live.read_text(), 200)
    assert not list(place.job(f"train-0001-{NAME}-1.1").glob("*"))
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=100)


def no_block(template: str) -> str:
    return template.replace("export HANSA_BLOCK=", "export NO_BLOCK=")


def checkpoints(folder: Path) -> list[Path]:
    return [one for one in folder.glob("checkpoint/*") if one.name[0] != "."]
