"""Real processes train, and take about as much memory as the planner foretells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

TOOL = Path(__file__).parents[2] / "tools" / "measure_memory.py"

CASES = (
    "none x1 float32 adamw 8x256x1",
    "fsdp x2 float32 adamw 2x64x1",
)
"""One where the activations decide, and one with all that fsdp moves."""


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_the_memory_of_training_is_foretold_within_a_tenth() -> None:
    words = [word for name in CASES for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, str(TOOL), "--json", *words],
        stdout=subprocess.PIPE,
        check=True,
        timeout=500,
    )
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert set(found) == set(CASES)
    for one in found.values():
        assert abs(one["foretold"] / one["measured"] - 1) < 0.10, one
        # The process itself must not be what was foretold.
        assert one["measured"] > 2 * one["base"]
