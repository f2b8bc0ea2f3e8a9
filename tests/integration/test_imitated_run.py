"""A real run on this machine, fitted and simulated again: the times are the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from runs import PATIENCE_S, Bench

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FEDERATION = """\
name: digits
seed: 7
model: {trainer: softmax, source: zeros, dtype: float32}
task: digits
strategy: {name: fedavg}
stop: {rounds: 3}
defaults:
  mover: posix
  job: {time: "0:10:00"}
  work: {steps: 4000, batch: 32, lr: 0.05}
facilities:
  amsterdam:
    gateway: {type: local, site: amsterdam.yaml}
    data: part-0
    linger: 1m
  bergen:
    gateway: {type: local, site: bergen.yaml}
    data: part-1
"""
SITE = """\
name: {name}
scheduler: {{type: local, slots: 2, wait: {{mean: {wait}, sigma: 0.3}}}}
mailbox: mailboxes/{name}
cache: cache
poll: {{first: 0.05s, longest: 0.2s}}
limits: {{linger: 2m}}
tasks: {{digits: {{}}}}
"""

TOLERANCE = 0.3
"""Of what a stall of a busy machine gets into: the run lasts a few seconds."""


def rows(check: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["where"], row["what"]): row for row in check["rows"]}


def test_a_run_with_queues_and_lingering_is_reproduced(bench: Bench) -> None:
    (bench.root / "federation.yaml").write_text(FEDERATION)
    for name, wait in (("amsterdam", "2s"), ("bergen", "1s")):
        (bench.root / f"{name}.yaml").write_text(SITE.format(name=name, wait=wait))
    bench.without_pictures()
    bench.hansa("run", "federation.yaml", "--id", "r")

    checking = bench.start("simulate", "--from", "r", "--check", "--json")
    check = json.loads(checking.communicate(timeout=PATIENCE_S)[0])["data"]
    assert checking.returncode == (0 if check["passed"] else 1)
    assert check["tolerance"] == 0.1
    found = rows(check)
    assert abs(found["run", "wall clock"]["error"]) <= TOLERANCE
    assert abs(found["run", "version 3"]["error"]) <= TOLERANCE
    # amsterdam's one job waits once; bergen's three do, each by the measured wait.
    for name in ("amsterdam", "bergen"):
        assert abs(found[name, "queue wait"]["error"]) < 0.01
        assert abs(found[name, "training"]["error"]) < 0.01
        assert abs(found[name, "node-hours"]["error"]) <= TOLERANCE

    # Had bergen lingered, too, it would have waited in its queue only once. How much
    # sooner all is done then depends on how long training takes, which is drawn anew.
    for change, jobs in ((), 3), (("facilities.bergen.linger=1m",), 1):
        told = bench.data("simulate", "--from", "r", "--no-folder", *change)
        counts = {name: one["jobs"] for name, one in told["facilities"].items()}
        assert counts == {"amsterdam": 1, "bergen": jobs}
    bench.hansa("simulate", "--from", "r", "--write", "study.yaml", "stop.rounds=2")
    again = bench.data("simulate", "study.yaml", "--no-folder")
    assert again["versions"] == 2
