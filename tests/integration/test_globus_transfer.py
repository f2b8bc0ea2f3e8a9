"""A real run whose models go by Globus Transfer, interrupted in mid-transfer."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import globus
import pytest
from runs import PATIENCE_S, Bench, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NAMES = ("amsterdam", "bergen")
SLOWLY = 500
"""Bytes a second: the model's 6 kB then take some seconds."""


@pytest.fixture
def transfer(bench: Bench, tmp_path: Path) -> Iterator[globus.Sandbox]:
    """Write a federation whose movers are Globus's, and start the service."""
    with globus.sandbox(tmp_path / "globus", compute=False) as made:
        path = bench.write(NAMES, rounds=1)
        server = made.add_collection(tmp_path / "runs")
        here = {"collection": server, "root": str(tmp_path / "runs"), "path": "/"}
        text = path.read_text()
        whole = {"type": "globus", "here": here}
        text = text.replace("  mover: posix\n", f"  mover: {json.dumps(whole)}\n")
        for name in NAMES:
            mail = made.add_collection(tmp_path / "mailboxes" / name, name)
            mover = json.dumps({"type": "globus", "collection": mail, "path": "/"})
            text = text.replace(f"  {name}:\n", f"  {name}:\n    mover: {mover}\n")
        path.write_text(text)
        bench.environment.update(made.env)
        bench.without_pictures()
        yield made


def sent_twice(transfer: globus.Sandbox) -> dict[tuple[str, ...], int]:
    """Return the files that went to the same place more than once."""
    ends = "source_endpoint_id", "destination_endpoint_id"
    counted = Counter(
        (task[ends[0]], task[ends[1]], one["source_path"])
        for task in transfer.transfers()
        for one in task["_successes"]
    )
    return {path: times for path, times in counted.items() if times > 1}


def submitted(bench: Bench) -> dict[str, Any]:
    return {one["ticket"]: one for one in bench.events("TransferSubmitted")}


@pytest.mark.parametrize(
    ("way", "how"), [("put", signal.SIGKILL), ("get", signal.SIGINT)]
)
def test_a_run_that_ends_in_mid_transfer_goes_on_without_sending_twice(
    bench: Bench, transfer: globus.Sandbox, way: str, how: signal.Signals
) -> None:
    collections = transfer.state.all("collections")
    sources = [
        key
        for key, one in collections.items()
        if (one["name"] == "runs") is (way == "put")
    ]
    first = bench.start("run", "federation.yaml", "--id", "r")
    if way == "get":
        until(lambda: len(bench.events("ModelStaged")) == len(NAMES))
    for source in sources:
        transfer.faults.slow(source, SLOWLY)

    def under_way() -> bool:
        return any(
            task["bytes_transferred"] and task["source_endpoint_id"] in sources
            for task in transfer.active()
        )

    until(lambda: under_way() or first.poll() is not None)
    os.killpg(first.pid, how) if how is signal.SIGKILL else first.send_signal(how)
    out, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode in (-signal.SIGKILL, 130), f"{out}\n{err}"
    open_before = set(submitted(bench)) - {
        one["ticket"] for one in bench.events("TransferEnded")
    }
    assert open_before
    for source in sources:
        transfer.faults.slow(source, 0)
    summary = bench.data("run", "--resume", "r")
    assert summary["outcome"] == "done"
    assert sent_twice(transfer) == {}
    ended = {one["ticket"]: one["outcome"] for one in bench.events("TransferEnded")}
    assert ended.keys() == submitted(bench).keys()
    assert {ended[ticket] for ticket in open_before} == {"done"}
    assert bench.data("replay", "r")["same"]
