"""Training programs of the facilities' own in a federation: the example."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import Bench

from hansa.store.manifest import read_update_manifest

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "own-training"


@pytest.mark.timeout(900)
def test_a_plain_program_and_a_trainer_of_hugging_face(bench: Bench) -> None:
    """One facility runs train.py, the other a `Trainer`, on the same model."""
    assert len((EXAMPLE / "train.py").read_text().splitlines()) < 40
    shutil.copytree(EXAMPLE, bench.root, dirs_exist_ok=True)
    make = [sys.executable, "train.py", "first.safetensors"]
    subprocess.run(make, cwd=bench.root, check=True, timeout=100)
    bench.without_pictures()
    bench.hansa("run", "federation.yaml", "--id", "r", "stop.rounds=1")
    before, after = (one["loss"] for one in bench.events("EvaluationReported"))
    assert after < before
    for name in ("bergen", "lubeck"):
        folder = bench.root / f"runs/r/updates/train-0001-{name}-1"
        update = read_update_manifest(folder)
        assert (update.steps, update.samples, update.partial) == (30, 960, False)
        assert update.metrics["train_loss_last"] < update.metrics["train_loss"]
        assert set(update.losses) == {"own"}
