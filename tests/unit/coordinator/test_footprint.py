"""How much memory something takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hansa.coordinator.footprint import Footprint

MB = 1_000_000
ASK = """\
import sys
block = bytearray(b"x") * {size}
print(flush=True)
sys.stdin.read()
"""
PEAKS = """\
import json
from hansa.coordinator.footprint import Footprint
before = bytearray(b"x") * 60_000_000
del before
with Footprint() as small:
    pass
with Footprint() as large:
    block = bytearray(b"x") * 60_000_000
    del block
print(json.dumps([small.own, large.own, large.extra, large.programs]))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="This system has no /proc."
)


def test_a_peak_is_seen_after_it_is_over() -> None:
    """In a process of its own: what other tests have left might be freed meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], stdout=subprocess.PIPE, check=True
    )
    small, large, extra, programs = json.loads(done.stdout)
    assert small < 20 * MB  # the larger peak was earlier
    assert 50 * MB < large < 80 * MB
    assert extra == large + programs


def program(megabytes: int) -> subprocess.Popen[bytes]:
    """Start one that has its memory, and keeps it until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASK.format(size=megabytes * MB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_programs_that_are_started_count_while_they_run() -> None:
    with program(100) as before, Footprint() as found, program(60) as process:
        found.look()
        process.communicate()
        before.communicate()
    assert found.programs is not None
    assert 60 * MB < found.programs < 120 * MB
    assert found.own is not None
    assert found.own < 20 * MB
