"""A federation over Globus: real endpoints, real Slurm clusters, the real clients.

Only the web services are imitated (``tests/sandbox``); they break as the real ones do.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from globus import Sandbox, log_in, sandbox
from runs import PATIENCE_S, Bench, until
from slurm import Cluster
from towns import Clusters, Town, check_accounts, federate, slurm_records

from sandbox.endpoints import Endpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

NAMES = ("amsterdam", "bergen")
AWAY_S = 60.0
"""How long the services are away."""
SLOW = 400
"""Bytes per second of a slow line; a model of the digits has some thousand."""


@pytest.fixture
def globus(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path / "globus") as made:
        yield made


@dataclass
class Federation:
    """Two facilities behind Globus, on Slurm clusters of their own."""

    bench: Bench
    globus: Sandbox
    clusters: dict[str, Cluster]
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    mailboxes: dict[str, str] = field(default_factory=dict)
    here: str = ""

    def build(self, rounds: int, steps: int, env: dict[str, str]) -> None:
        """Log in, register the function, start the endpoints, write all files."""
        self.bench.environment.update(env)
        if "HANSA_GLOBUS_CLIENT_ID" not in env:
            log_in(env, self.bench.root)
        function = self.bench.data("function", "register")["function"]
        towns = {name: self.town(name, steps) for name in NAMES}
        federate(self.bench, towns, rounds, {"patience": "300s"})
        for name in NAMES:
            site = self.bench.root / f"{name}.yaml"
            mailbox = self.bench.root / "mailboxes" / name
            self.mailboxes[name] = self.globus.add_collection(mailbox)
            self.endpoints[name] = self.globus.add_facility(
                name, site, function, wait=False
            )
        for endpoint in self.endpoints.values():
            endpoint.wait()
        self.here = self.globus.add_collection(self.bench.root, "server")
        path = self.bench.root / "federation.yaml"
        plan = json.loads(path.read_text())
        for name, part in plan["facilities"].items():
            part.update(self.ways(name, function))
        path.write_text(json.dumps(plan, indent=1))

    def town(self, name: str, steps: int) -> Town:
        conf = str(self.clusters[name].conf)
        return Town(scheduler={"type": "slurm", "conf": conf}, steps=steps)

    def ways(self, name: str, function: str) -> dict[str, Any]:
        """Return how a facility is reached."""
        here = {"collection": self.here, "root": str(self.bench.root), "path": "/"}
        return {
            "gateway": {
                "type": "globus_compute",
                "endpoint": self.endpoints[name].id,
                "function": function,
                "every": "1s",
                "timeout": "40s",
            },
            "mover": {
                "type": "globus",
                "collection": self.mailboxes[name],
                "path": "/",
                "here": here,
            },
        }


@pytest.fixture
def federation(bench: Bench, globus: Sandbox, clusters: Clusters) -> Federation:
    bench.without_pictures()
    return Federation(bench, globus, clusters(*NAMES, nodes=1))


def in_peace(federation: Federation) -> str:
    """Run the same federation without Globus and queues; return its model's sha256."""
    bench = federation.bench
    for name in NAMES:
        site = json.loads((bench.root / f"{name}.yaml").read_text())
        site |= {"scheduler": {"type": "local", "slots": 2}, "mailbox": f"calm/{name}"}
        (bench.root / f"calm-{name}.yaml").write_text(json.dumps(site))
    plan = json.loads((bench.root / "federation.yaml").read_text())
    for name, part in plan["facilities"].items():
        part["gateway"] = {"type": "local", "site": f"calm-{name}.yaml"}
        part["mover"] = "posix"
    (bench.root / "calm.yaml").write_text(json.dumps(plan))
    return str(bench.data("run", "calm.yaml", "--id", "calm")["model_sha256"])


def check_nothing_twice(federation: Federation) -> None:
    """Check that no file was sent twice, and that no job was submitted twice."""
    globus = federation.globus
    sent = Counter(globus.sent())
    assert set(sent.values()) == {1}
    tickets = [one["ticket"] for one in federation.bench.events("TransferSubmitted")]
    assert len(tickets) == len(set(tickets))
    tasks = Counter(task["_submission"] for task in globus.transfers())
    assert set(tasks.values()) == {1}
    assert set(tickets) <= set(tasks)
    for cluster in federation.clusters.values():
        names = Counter(record["Name"] for record in slurm_records(cluster))
        assert names
        assert set(names.values()) == {1}


def to_do(bench: Bench) -> str:
    """Return what a run wants a person to do, as `hansa status` shows it."""
    told = json.loads((bench.root / "runs/r/live.json").read_text())
    return "\n".join(one["todo"] for one in told["facilities"].values())


def test_a_run_outlives_what_happens_to_globus(federation: Federation) -> None:
    bench, globus = federation.bench, federation.globus
    federation.build(rounds=3, steps=400, env=globus.person_env)
    globus.faults.corrupt(federation.mailboxes["amsterdam"])
    globus.faults.reply("POST /v0.10/transfer", 502, after=True)
    run = bench.start("run", "federation.yaml", "--id", "r", "--json")

    # The broker dies, and the process that answers for a facility.
    until(lambda: len(bench.events("JobQueued")) >= 2)
    assert federation.endpoints["bergen"].kill_user_endpoints() > 0
    globus.broker.kill()
    globus.faults.reply("POST /v3/endpoints/.*/submit", 502, after=True)
    globus.broker.start()

    # A collection wants a consent from now on: the run waits, and says how to give it.
    globus.faults.need_consent(federation.mailboxes["bergen"])
    consent = ["--collection", federation.mailboxes["bergen"]]
    until(lambda: f"`hansa login {' '.join(consent)}`" in to_do(bench))
    log_in(globus.person_env, bench.root, *consent)

    # All is away for a while; meanwhile the tokens become too old.
    until(lambda: bench.events("VersionPublished")[1:])
    globus.kill_service()
    globus.faults.expire_tokens()
    time.sleep(AWAY_S)
    globus.start_service()

    # The login is taken back: somebody has to log in again.
    until(lambda: bench.events("VersionPublished")[2:])
    globus.faults.revoke_tokens()
    until(lambda: "`hansa login" in to_do(bench))
    log_in(globus.person_env, bench.root, *consent)

    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, f"{out}\n{err}"
    check_accounts(bench, NAMES, rounds=3)
    check_nothing_twice(federation)
    assert globus.faults.corrupted(federation.mailboxes["amsterdam"]) == 1
    assert sum(event["faults"] for event in bench.events("TransferEnded")) >= 1
    assert [one["code"] for one in globus.submissions()].count("Duplicate") >= 1
    assert json.loads(out)["data"]["model_sha256"] == in_peace(federation)


def test_a_coordinator_killed_in_mid_transfer_sends_nothing_twice(
    federation: Federation,
) -> None:
    bench, globus = federation.bench, federation.globus
    federation.build(rounds=1, steps=100, env=globus.env)
    check_refusals(federation)
    run = ["run", "federation.yaml", "--id", "r"]
    line = federation.mailboxes["amsterdam"]
    for end in ("destination", "source"):
        globus.faults.slow(line, SLOW)
        process = bench.start(*run)
        until(partial(moving, globus, line, end))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert len(open_tickets(bench, "amsterdam")) == 1
        globus.faults.slow(line, 0)
        run = ["run", "--resume", "r"]
    summary = bench.data(*run)
    assert summary["outcome"] == "done"
    check_accounts(bench, NAMES, rounds=1)
    check_nothing_twice(federation)
    assert not open_tickets(bench, "amsterdam")
    codes = [one["code"] for one in globus.submissions()]
    assert codes.count("Duplicate") >= 2


def check_refusals(federation: Federation) -> None:
    """Check that other functions and strangers are refused, and that people see it."""
    bench, globus = federation.bench, federation.globus
    other = bench.data("function", "register")["function"]
    stranger = globus.add_client("eve@elsewhere.example")
    bench.environment.update(globus.env_for(stranger, bench.root / "eve"))
    key = "facilities.amsterdam.gateway.function"
    out = bench.hansa("check", "federation.yaml", f"{key}={other}", code=3)
    bench.environment.update(globus.env)
    assert "not ready: amsterdam, bergen\n" in out
    assert (
        f"amsterdam: endpoint: problem: The endpoint may not run the function {other}"
        in out
    )
    assert f"add {other} to `allowed_functions`" in out
    assert "bergen: reachable: problem: The endpoint" in out
    assert out.count("`hansa whoami` says who you are") == 1


def moving(globus: Sandbox, collection: str, end: str) -> bool:
    """Tell whether some, but not all, of a task's bytes have gone over."""
    return any(
        task[f"{end}_endpoint_id"] == collection and task["bytes_transferred"]
        for task in globus.active()
    )


def open_tickets(bench: Bench, facility: str) -> list[dict[str, Any]]:
    """Return the submissions in the journal that have not ended."""
    ended = {event["ticket"] for event in bench.events("TransferEnded")}
    return [
        event
        for event in bench.events("TransferSubmitted")
        if event["facility"] == facility and event["ticket"] not in ended
    ]
