"""`hansa evaluate` over real processes: base, local and central models, and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import Bench

pytest.importorskip("torch")
pytest.importorskip("rdkit")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FEDERATION = """\
name: tiny
seed: 3
model:
  trainer: causal-lm
  source: tiny-llama
  options: {hidden: 32, layers: 1, heads: 2, vocabulary: 300}
task: {name: chem-instruct, options: {train_limit: 12, test_limit: 4}}
strategy: fedavg
stop: {rounds: 1}
evaluation: {on: [amsterdam], local: false}
defaults:
  mover: posix
  job: {time: "0:10:00"}
  work: {steps: 25, batch: 8, lr: 0.01, sequence_length: 64}
facilities:
  amsterdam:
    gateway: {type: local, site: amsterdam.yaml}
    data: name_conversion
  bergen:
    gateway: {type: local, site: bergen.yaml}
    data: property_prediction
"""
SITE = """\
name: %s
scheduler: {type: local, slots: 3}
mailbox: mailboxes/%s
cache: cache
heartbeat: 0.1
tasks: {chem-instruct: {splits: %s, test_splits: %s}}
"""
GROUPS = "[name_conversion, property_prediction]"


def write(root: Path) -> None:
    """Write a federation where one facility may read all data and the other may not."""
    for name, splits in (("amsterdam", GROUPS), ("bergen", "[property_prediction]")):
        (root / f"{name}.yaml").write_text(SITE % (name, name, splits, GROUPS))
    (root / "federation.yaml").write_text(FEDERATION)


def test_a_run_against_base_local_and_central_models(bench: Bench) -> None:
    write(bench.root)
    bench.without_pictures()
    run = bench.data("run", "federation.yaml", "--id", "r")
    found = bench.data("evaluate", "r", "--limit", "2", "--tokens", "12")

    arms = {arm["name"]: arm for arm in found["arms"]}
    assert [*arms] == ["base", "local amsterdam", "local bergen", "central", "global"]
    assert found["left_out"] == {}
    assert arms["global"]["sha256"] == run["model_sha256"]
    # What was measured in the run is measured again, by another job.
    assert arms["base"]["mean_loss"] == pytest.approx(run["versions"][0]["eval_loss"])
    assert arms["global"]["mean_loss"] == pytest.approx(run["versions"][1]["eval_loss"])
    assert arms["global"]["mean_loss"] < arms["base"]["mean_loss"]
    # Each alone knows its own data best; who saw all data has learned both.
    own = {"amsterdam": "name_conversion-s2f", "bergen": "property_prediction-bbbp"}
    for name, task in own.items():
        assert arms[f"local {name}"]["losses"][task] < arms["base"]["losses"][task]
    assert arms["central"]["mean_loss"] < min(
        arms[name]["mean_loss"] for name in arms if name.startswith("local")
    )
    budgets = {
        name: (
            arm["budget"]["rounds"],
            arm["budget"]["steps"],
            arm["budget"]["samples"],
        )
        for name, arm in arms.items()
        if arm["budget"]
    }
    assert budgets == {
        "local amsterdam": (1, 25, 200),
        "local bergen": (1, 25, 200),
        "central": (1, 50, 400),
        "global": (1, 50, 400),
    }
    assert arms["central"]["trained_at"] == ["amsterdam"]
    # Answers were generated and scored there; only numbers came.
    for arm in arms.values():
        assert len(arm["scores"]) == len(arm["losses"]) == 10
        assert {s["answers"] for s in arm["scores"].values()} == {2}
        assert {"exact", "valid", "morgan"} < arm["scores"][
            "name_conversion-i2s"
        ].keys()
        assert 0 <= arm["scores"]["property_prediction-bbbp"]["accuracy"] <= 1

    again(bench, found)
    refusals(bench)


def again(bench: Bench, found: dict[str, Any]) -> None:
    """Nothing is trained or measured twice, and the files say the same."""
    journals = sorted((bench.root / "runs").glob("**/journal.jsonl"))
    assert len(journals) == 1 + 3 + 5
    before = [path.read_bytes() for path in journals]
    assert bench.data("evaluate", "r", "--limit", "2", "--tokens", "12") == found
    assert [path.read_bytes() for path in journals] == before
    folder = bench.root / "runs/r/evaluation"
    assert json.loads((folder / "evaluation.json").read_text()) == found
    assert found["verdict"] in (folder / "evaluation.md").read_text()


def refusals(bench: Bench) -> None:
    bench.hansa("evaluate", "r", "--against", "best", code=2)
    assert "there is no 'best'" in bench.stderr
    bench.hansa("evaluate", "nowhere", code=2)
