"""`hansa compare` with real processes: however it ends, none is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fake_contest import federation

pytestmark = pytest.mark.integration

DEADLINE_S = 60


@pytest.fixture
def comparison(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    path = federation(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "hansa.cli", "compare", str(path), "--jobs", "2",
         "--seeds", "100000", "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return its two processes as soon as both are at work."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        found = psutil.Process(process.pid).children()
        busy = [one for one in found if sum(one.cpu_times()[:2]) > 1.0]
        if len(busy) == 2:
            return found
        time.sleep(0.1)
    raise AssertionError("no two processes were at work in time")


def is_deaf(process: psutil.Process) -> bool:
    """Tell whether Ctrl-C is blocked in a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("SigBlk:")]
    return bool(int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1)


def test_after_ctrl_c_nothing_is_left(comparison: subprocess.Popen[str]) -> None:
    children = workers_of(comparison)
    workers = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
    assert [is_deaf(one) for one in workers] == [True, True]
    os.killpg(comparison.pid, signal.SIGINT)  # as a terminal does
    _, words = comparison.communicate(timeout=DEADLINE_S)
    assert comparison.returncode == 130
    assert "Traceback" not in words
    assert not psutil.wait_procs(children, timeout=DEADLINE_S)[1]


def test_workers_end_with_a_parent_that_was_killed(
    comparison: subprocess.Popen[str],
) -> None:
    children = workers_of(comparison)
    comparison.kill()
    assert not psutil.wait_procs(children, timeout=DEADLINE_S)[1]
