"""A federation over real ssh and rsync; the line dies on the way and comes back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import PATIENCE_S, Bench, until
from sshd import Sshd, need

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NAMES = ("amsterdam", "bergen")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    need("sshd", "ssh", "rsync")
    made = Sshd.make(tmp_path / "sshd")
    made.start()
    yield made
    made.stop()


def write(bench: Bench, server: Sshd, rounds: int, steps: int) -> None:
    """Write the digits federation with facilities behind ssh."""
    path = bench.write(NAMES, rounds=rounds, steps=steps, patience="120s")
    line = ", ".join(f"{key}: {value}" for key, value in server.options.items())
    program = f"{sys.executable} -m hansa.cli"
    text = path.read_text()
    for name in NAMES:
        local = f"    gateway: {{type: local, site: {name}.yaml}}\n"
        assert local in text
        site = bench.root / f"{name}.yaml"
        gateway = f"type: ssh, {line}, command: {program}, site: {site}"
        remote = f"    gateway: {{{gateway}}}\n    mover: {{type: rsync, {line}}}\n"
        text = text.replace(local, remote)
    (bench.root / "mailboxes").mkdir()
    path.write_text(text)


def test_a_run_over_ssh_survives_a_dead_line(bench: Bench, server: Sshd) -> None:
    write(bench, server, rounds=3, steps=4000)
    run = bench.start("run", "federation.yaml", "--id", "r", "--json")
    until(lambda: len(bench.events("JobStarted")) >= 2)
    server.stop()
    # Jobs go on without a line; their updates lie in the mailbox until it is back.
    mail = bench.root / "mailboxes"
    until(lambda: [*mail.glob("*/r/updates/train-0001-*/manifest.json")])
    assert run.poll() is None
    server.start()
    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, f"{out}\n{err}"
    summary = bench.data("report", "r")
    assert summary["outcome"] == "done"
    assert len(summary["versions"]) == 4
    assert {f["updates_applied"] for f in summary["facilities"].values()} == {3}
    trained = [e for e in bench.events("JobQueued") if "train" in e["assignment"]]
    assert len(trained) == len({e["assignment"] for e in trained}) == 6
    assert summary["bytes_received"] > 0


def test_a_check_over_ssh_with_a_trial_job(bench: Bench, server: Sshd) -> None:
    write(bench, server, rounds=1, steps=5)
    out = bench.hansa("check", "federation.yaml", "--submit")
    assert "all ready" in out
    assert "ran on" in out
    server.stop()
    out = bench.hansa("check", "federation.yaml", code=3)
    assert "Connection refused" in out
    assert "not ready: amsterdam, bergen" in out
