"""Federations over PBS facilities: an emulator of PBS Pro's commands (see `pbs`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from busy import busy
from pbs import PbsServer
from ports import block
from runs import Bench
from slurm import require_slurm
from towns import Town, check_accounts, check_ranks, federate, node_seconds

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TOWNS = ("lubeck", "riga", "visby")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, PbsServer]]:
    require_slurm()
    root = tmp_path / "clusters"
    root.mkdir()
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(PbsServer(root, name, block(), nodes=4))
            for name in TOWNS
        }


def pbs_town(server: PbsServer) -> Town:
    launch = f"{server.bin}/mpiexec -n {{ranks}} --ppn {{ranks_per_node}}"
    return Town(
        scheduler={"type": "pbs", **server.options}, launch=launch, job={"nodes": 2}
    )


def test_three_servers_with_full_queues_and_mpiexec_over_two_nodes(
    bench: Bench, servers: dict[str, PbsServer]
) -> None:
    towns = {name: pbs_town(server) for name, server in servers.items()}
    federate(bench, towns, rounds=2)
    with ExitStack() as queues:
        for server in servers.values():
            others = busy(server.cluster, waiting=1, seconds=2, nodes=4)
            queues.enter_context(others)
        summary = bench.data("run", "federation.yaml", "--id", "r")

    assert summary["outcome"] == "done"
    check_accounts(bench, TOWNS, rounds=2)
    for name, server in servers.items():
        charged = node_seconds(server.cluster)
        figures = summary["facilities"][name]
        assert figures["node_hours"] * 3600 == pytest.approx(charged, abs=0.01)
        assert figures["queue_wait_s"] > 0
        check_ranks(bench, name, f"train-0001-{name}-1.1")


def test_a_pbs_job_lingers_for_the_next_orders(
    bench: Bench, servers: dict[str, PbsServer]
) -> None:
    town = pbs_town(servers["visby"])
    town.plan = {"linger": "1m"}
    federate(bench, {"visby": town}, rounds=3)
    bench.hansa("run", "federation.yaml", "--id", "r")
    check_accounts(bench, ["visby"], rounds=3)
    hosts = {event["host"] for event in bench.events("JobQueued")}
    assert len(hosts - {""}) >= 1
    assert len([e for e in bench.events("JobQueued") if not e["host"]]) <= 2
