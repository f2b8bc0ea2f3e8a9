"""A facility where nobody may submit: its jobs run in a block that an endpoint holds.

Real endpoints of Globus Compute, in the sandbox; the block is a job of a real Slurm.
Both folders are what `hansa site globus-endpoint` writes.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from globus import Sandbox, need_globus, sandbox
from ports import block
from runs import PATIENCE_S, Bench, until
from slurm import Cluster, require_slurm
from towns import Town, check_accounts, federate

from sandbox import endpoints
from sandbox.endpoints import Endpoint
from sandbox.processes import kill

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

NAME = "danzig"
NODES = 2
LONG = 20_000
"""Steps that take some seconds: time enough for trouble."""
SRUN = (
    "srun --nodes={nodes} --ntasks={ranks} --ntasks-per-node={ranks_per_node} "
    "--nodelist=$PARSL_MPI_NODELIST"
)


@dataclass
class Place:
    """The facility with its endpoints, and whoever experiments with it.

    Attributes:
        bench: Where runs are started.
        globus: The service.
        cluster: Its batch system.
        function: Id of Hansa's function.
        front: The endpoint on the login node.
        behind: The endpoint that holds the block.
    """

    bench: Bench
    globus: Sandbox
    cluster: Cluster
    function: str = ""
    front: Endpoint | None = None
    behind: list[Endpoint] = field(default_factory=list)

    def build(self, engine: str, launch: str = "", steps: int = 20) -> None:
        """Write the federation and have both endpoints."""
        self.federate("", engine, launch, steps)
        if self.front is None:
            site = self.bench.root / f"{NAME}.yaml"
            self.function = self.bench.data("function", "register")["function"]
            self.front = self.globus.add_facility("front", site, self.function)
        behind = self.globus.new_endpoint(f"behind-{len(self.behind)}")
        self.behind.append(behind)
        self.write_block(behind, engine)
        behind.start()
        self.federate(behind.id, engine, launch, steps)

    def federate(self, behind: str, engine: str, launch: str, steps: int) -> None:
        gateway: dict[str, Any] = {
            "type": "globus_compute",
            "endpoint": self.front.id if self.front else "",
            "function": self.function,
            "every": "5s",  # each poll costs a second of this machine's time
            "block": {"endpoint": behind, "nodes": NODES, "engine": engine},
        }
        town = Town(
            scheduler={"type": "block", "nodes": NODES, "stale": "10s"},
            launch=launch,
            job={"nodes": NODES if launch else 1, "time": "0:05:00"},
            steps=steps,
            plan={"gateway": gateway},
        )
        federate(self.bench, {NAME: town}, rounds=1)

    def write_block(self, behind: Endpoint, engine: str) -> None:
        environment = self.bench.environment
        self.bench.environment = {**environment, "SLURM_CONF": str(self.cluster.conf)}
        words = ["--site", f"{NAME}.yaml", "--function", self.function]
        words += ["--program", str(endpoints.program()), "-o", str(behind.folder)]
        words += ["--block", "--engine", engine, "--time", "30m", "--queue", "debug"]
        self.bench.hansa("site", "globus-endpoint", *words)
        self.bench.environment = environment
        # How often it looks whether there is work: too rarely for a test.
        template = behind.folder / "user_config_template.yaml.j2"
        period = r"strategy_period: \d+\.\d"
        text, count = re.subn(period, "strategy_period: 0.5", template.read_text())
        assert count == 1
        template.write_text(text)
        behind.settle()

    def blocks(self) -> list[str]:
        """Return the ids of the Slurm jobs that are blocks and not over."""
        return self.cluster.run("squeue", "--noheader", "--format=%i").split()

    def kill(self, block: str) -> None:
        """End all that runs in a block with -9, as if its nodes had lost power."""
        kill([one for one in psutil.process_iter() if block_of(one, self) == block])

    def clear(self) -> None:
        """Give all nodes back."""
        for behind in self.behind:
            behind.kill()
        for held in self.blocks():
            self.cluster.run("scancel", held)
        until(lambda: not self.blocks())

    def job(self, run: str, key: str) -> Path:
        return self.bench.root / f"mailboxes/{NAME}/{run}/jobs/{key}"


def block_of(process: psutil.Process, place: Place) -> str:
    """Return the id of the Slurm job that a process belongs to; empty: none."""
    try:
        said = process.environ()
    except psutil.Error:
        return ""
    ours = said.get("SLURM_CONF") == str(place.cluster.conf)
    return said.get("SLURM_JOB_ID", "") if ours else ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One sandbox and one cluster for all tests: each takes seconds to start."""
    need_globus()
    require_slurm()
    bench = Bench(tmp_path_factory.mktemp("block"))
    bench.without_pictures()
    (bench.root / "slurm").mkdir()
    with (
        sandbox(bench.root / "globus") as globus,
        Cluster(bench.root / "slurm", NAME, block(12 + NODES), NODES, 2) as cluster,
    ):
        bench.environment.update(globus.env)
        globus.faults.unlimited()
        yield Place(bench, globus, cluster)
        bench.end()


@pytest.fixture
def place(whole: Place) -> Iterator[Place]:
    yield whole
    whole.clear()


def test_a_federation_trains_in_blocks_and_outlives_one(place: Place) -> None:
    place.build("GlobusComputeEngine", steps=LONG)
    bench, key = place.bench, f"train-0001-{NAME}-1"
    run = bench.start("run", "federation.yaml", "--id", "r", "--json")
    until(lambda: bench.events("JobQueued"))
    # Beside it somebody takes the endpoint of the login node for that of the block.
    assert place.front is not None
    plan = json.loads((bench.root / "federation.yaml").read_text())
    gateway = plan["facilities"][NAME]["gateway"]
    gateway["block"]["endpoint"], gateway["every"] = place.front.id, "15s"
    (bench.root / "wrong.yaml").write_text(json.dumps(plan))
    wrong = bench.start("run", "wrong.yaml", "--id", "wrong")

    until(lambda: checkpoints(place.job("r", f"{key}.1")))
    (block,) = place.blocks()
    asked = place.cluster.run("squeue", "--noheader", "--format=%P %D %l %T").split()
    assert asked == ["debug", str(NODES), "30:00", "RUNNING"]
    place.kill(block)
    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, f"{out}\n{err}"

    check_accounts(bench, [NAME], rounds=1)
    ended = {
        (event["assignment"], event["number"]): event["state"]
        for event in bench.events("JobEnded")
    }
    assert (ended[key, 1], ended[key, 2]) == ("NODE_FAIL", "DONE")
    (arrived,) = bench.events("UpdateArrived")
    assert (arrived["assignment"], arrived["steps"]) == (key, LONG)
    log = (place.job("r", f"{key}.2") / "log.txt").read_text()
    (resumed,) = re.findall(r"Going on from .*, step (\d+)", log)
    assert 0 < int(resumed) < LONG
    (figures,) = json.loads(out)["data"]["facilities"].values()
    assert figures["node_hours"] > 0
    assert figures["queue_wait_s"] > 0
    (other,) = place.blocks()  # the same for all jobs that followed; not yet given back
    assert other != block

    # What was wrong there is told where people look; on a login node nothing has run.
    live = bench.root / "runs/wrong/live.json"
    until(lambda: live.exists() and "HANSA_BLOCK does not" in live.read_text())
    assert not list(place.job("wrong", f"{key}.1").glob("*"))
    wrong.send_signal(signal.SIGINT)
    wrong.communicate(timeout=PATIENCE_S)


def test_an_mpi_engine_says_where_the_ranks_go(place: Place) -> None:
    place.build("GlobusMPIEngine", launch=SRUN)
    place.bench.hansa("run", "federation.yaml", "--id", "mpi")
    check_accounts(place.bench, [NAME], rounds=1, run="mpi")
    folder = place.job("mpi", f"train-0001-{NAME}-1.1")
    present = [json.loads(path.read_text()) for path in folder.glob("ranks/*/*.json")]
    assert {one["host"] for one in present} == set(place.cluster.node_names)


def checkpoints(folder: Path) -> list[Path]:
    return [one for one in folder.glob("checkpoint/*") if one.name[0] != "."]
