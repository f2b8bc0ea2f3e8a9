"""How much memory something takes."""

from __future__ import annotations

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

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="This system has no /proc."
)


def test_a_peak_is_seen_after_it_is_over() -> None:
    before = bytearray(b"x") * (60 * MB)
    del before
    with Footprint() as small:
        pass
    with Footprint() as large:
        block = bytearray(b"x") * (60 * MB)
        del block
    assert small.own is not None
    assert small.own < 20 * MB  # the larger peak was earlier
    assert large.own is not None
    assert 50 * MB < large.own < 80 * MB
    assert large.extra == large.own + (large.programs or 0)


def test_programs_that_are_started_count_while_they_run() -> None:
    with (
        Footprint() as found,
        subprocess.Popen(
            [sys.executable, "-c", ASK.format(size=60 * MB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()  # it has its memory now
        found.look()
        process.communicate()
    assert found.programs is not None
    assert 60 * MB < found.programs < 120 * MB
    assert found.own is not None
    assert found.own < 20 * MB
