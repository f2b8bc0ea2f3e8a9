"""`hansa plan --memory`: with a federation, and with a model and a machine alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hansa.cli.app import app
from hansa.cli.plan_memory import bar
from hansa.coordinator.findings import FacilityCheck
from hansa.coordinator.memory import (
    NodeMemory,
    memory_finding,
    plan_memory,
    shape_of,
)
from hansa.coordinator.throughput import Study
from hansa.core.errors import SpecError, UsageError
from hansa.planner.choice import Wants
from hansa.planner.known import must_know
from hansa.planner.record import Measurement
from hansa.spec import load_federation

REPO = Path(__file__).parents[3]
DOE = REPO / "examples" / "doe.yaml"
GB = 10**9


def hansa(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def plans(*arguments: str) -> dict[str, Any]:
    data = json.loads(hansa("plan", "--memory", *arguments, "--json").stdout)["data"]
    assert data["margin"] == 0.08
    found: dict[str, Any] = data["plans"]
    return found


def test_the_four_machines_of_the_paper(tmp_path: Path) -> None:
    result = hansa("plan", "--memory", str(DOE), "--runs", str(tmp_path))
    assert result.exit_code == 0, result.output
    found = plans(str(DOE), "--runs", str(tmp_path))
    assert {name: one["memory"]["sharding"] for name, one in found.items()} == {
        "polaris": "fsdp",
        "perlmutter": "fsdp",
        "aurora": "zero1",
        "frontier": "zero1",
    }
    polaris = found["polaris"]["memory"]
    assert polaris["total_bytes"] == sum(polaris["parts"].values())
    assert polaris["micro_batch"] * polaris["accumulation"] * 8 >= 96
    assert found["polaris"]["transfer_bytes"] == 4 * polaris["parameters"]
    lines = result.stdout.splitlines()
    (row,) = [line.split() for line in lines if line.split()[:2] == ["polaris", "8"]]
    assert row[4] == "fsdp"
    bars = [line for line in lines if line.startswith("polaris  ") and "█" in line]
    assert len(bars) == 1
    assert any(line.startswith("polaris: zero1 would take") for line in lines)


def test_measured_steps_give_node_hours(tmp_path: Path) -> None:
    study = Study(spec=load_federation(DOE), facility="polaris", runs=tmp_path)
    study.keep([Measurement(nodes=2, ranks=8, batch=96, steps=9, step_s=6.0)], "weak")
    found = plans(str(DOE), "--runs", str(tmp_path))
    pace = found["polaris"]["pace"]
    assert (pace["step_s"], pace["samples_per_s"]) == (6.0, 16.0)
    assert pace["node_hours"] == pytest.approx(30 * 6.0 * 2 / 3600)
    assert found["aurora"]["pace"] is None


def test_a_model_needs_no_federation() -> None:
    words = ["--model", "llama-2-7b", "--gpu-memory", "40GB", "--ranks", "8"]
    (found,) = plans(*words).values()
    assert found["memory"]["sharding"] == "fsdp"
    assert found["ranks"] == 8
    words = ["--model", "llama-2-7b", "--profile", "olcf/frontier", "--nodes", "4"]
    found = plans(*words, "--work", "micro_batch=12")["olcf/frontier"]
    assert found["ranks"] == 32
    assert found["memory"]["sharding"] == "zero1"
    assert plans(*words, "--lora", "16")["olcf/frontier"]["memory"]["sharding"] == "ddp"


def test_a_models_own_config_is_read(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    machine = ["--gpu-memory", "16GB", "--ranks", "1"]
    for place in (tmp_path, tmp_path / "config.json"):
        (found,) = plans("--model", str(place), *machine).values()
        memory = found["memory"]
        numbers = 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 2 * 100 * 64 + 64
        assert (memory["parameters"], memory["sharding"]) == (numbers, "none")


def test_what_does_not_fit_fails_and_says_what_would() -> None:
    words = ["--model", "llama-2-70b", "--profile", "nersc/perlmutter"]
    result = hansa("plan", "--memory", *words)
    assert result.exit_code == 3
    assert "does not fit" in result.stdout
    assert "One of these would fit: " in result.stdout
    assert "LoRA (model.options.lora: {rank: 16})" in result.stdout
    ways = plans(*words)["nersc/perlmutter"]["memory"]
    assert (ways["fits"], ways["sharding"]) == (False, None)
    assert ways["would_fit"]


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["--model", "llama2"], UsageError, "What there is to train on"),
        (["--model", "gpt2", "--gpu-memory", "a", "--ranks", "1"], UsageError, "size"),
        (["--model", "gpt9", "--profile", "olcf/frontier"], SpecError, "not known"),
        (["--model", "gpt2", "--profile", "olcf/summit"], SpecError, "no profile"),
        (
            ["--model", "gpt2", "--profile", "olcf/frontier", "--work", "lrr=3"],
            UsageError,
            "--work lrr",
        ),
        (
            [
                "--model",
                "gpt2",
                "--profile",
                "olcf/frontier",
                "--work",
                "micro_batch=a",
            ],
            UsageError,
            "--work micro_batch",
        ),
        ([], UsageError, "no federation file"),
    ],
)
def test_what_is_wrong_is_told(
    words: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        hansa("plan", "--memory", *words)


def test_a_bar_ends_where_the_memory_does() -> None:
    node = NodeMemory(
        nodes=2,
        ranks_per_node=4,
        host=False,
        device_bytes=40 * GB,
        host_bytes=None,
    )
    wants = Wants(precision="mixed", batch=48, micro_batch=6, sequence_length=512)
    memory = plan_memory(must_know("llama-2-7b"), wants, node)
    drawn = bar(memory, 80 * GB)
    assert (drawn.index("┊"), drawn.index("│"), len(drawn)) == (28, 30, 31)
    ends = list(memory.parts.to_json().values())
    assert drawn.count("█") == round(ends[0] * 60 / (80 * GB))
    filled = len(drawn.replace(" ", "").rstrip("┊│"))
    assert filled == round(memory.parts.total * 60 / (80 * GB))


def finding(
    tmp_path: Path, model: str, memory: str, node: dict[str, Any], nodes: int = 2
) -> Any:
    """Return what a check finds of a facility that says this of its nodes."""
    (tmp_path / "fed.yaml").write_text(
        f"""
name: fed
model: {model}
task: chem-instruct
strategy: fedavg
stop: {{rounds: 1}}
facilities:
  here:
    gateway: {{type: local, site: site.yaml}}
    mover: posix
    job: {{nodes: {nodes}}}
    work: {{steps: 1, batch: 64, {memory}}}
""",
        encoding="utf-8",
    )
    spec = load_federation(tmp_path / "fed.yaml")
    check = FacilityCheck("here", probe={"node": node})
    memory_finding(check, spec, spec.facilities["here"], shape_of(spec))
    (found,) = check.of("memory")
    return found


LLAMA = "{trainer: causal-lm, source: llama-2-7b, dtype: bfloat16}"
TINY = "{trainer: causal-lm, source: tiny-llama}"
GPUS = {"gpus": 4, "gpu_memory": 40 * GB, "ranks": 4}


def test_the_check_refuses_what_can_not_fit(tmp_path: Path) -> None:
    found = finding(tmp_path, LLAMA, "precision: mixed", GPUS)
    assert (found.state, found.detail.split(" with ")[1]) == ("ok", "fsdp")
    found = finding(tmp_path, LLAMA, "precision: mixed, sharding: ddp", GPUS)
    assert found.state == "problem"
    assert found.detail.startswith("6.7 G parameters do not fit. Even with ddp over 8")
    assert "sharding: auto" in found.hint


def test_hansa_check_fails_where_the_model_can_not_fit(tmp_path: Path) -> None:
    node = "node: {gpus: 4, gpu_memory: 16GB, ranks: 4}"
    site = f"name: here\nscheduler: local\nmailbox: mailbox\n{node}\n"
    tasks = "tasks: {chem-instruct: {}}\nmodels: {llama-2-7b: /models}\n"
    (tmp_path / "site.yaml").write_text(site + tasks, encoding="utf-8")
    finding(tmp_path, LLAMA, "sharding: zero1", GPUS)  # writes the federation's file
    result = hansa("check", str(tmp_path / "fed.yaml"), "--json")
    assert result.exit_code == 3
    problems = json.loads(result.stdout)["data"]["here"]["problems"]
    (memory,) = [one for one in problems if "do not fit" in one["what"]]
    assert "zero1 over 8 ranks" in memory["what"]
    assert "sharding: auto" in memory["hint"]


def test_what_the_ranks_can_not_do_is_refused_before_any_job(tmp_path: Path) -> None:
    """A model that would fit well, but the job would end with an error."""
    one = {"gpus": 0, "ranks": 1}
    for work, node, told in (
        ("sharding: none", GPUS, "the job has 8 ranks"),
        ("sharding: zero1, cpu_offload: true", GPUS, "cpu_offload is for fsdp"),
        ("sequence_length: 9999", GPUS, "the model is made for at most 512 tokens"),
    ):
        found = finding(tmp_path, TINY, work, node)
        assert found.state == "problem"
        assert told in found.detail
        assert found.hint
    found = finding(tmp_path, TINY, "sharding: none", {**one, "ranks": 1}, nodes=1)
    assert found.state == "ok"
    for work in ("sharding: fsdp", "cpu_offload: true"):
        found = finding(tmp_path, TINY, work, one, nodes=1)
        assert (found.state, "the job has one rank" in found.detail) == (
            "problem",
            True,
        )
    words = ["--model", "gpt2", "--gpu-memory", "40GB", "--ranks", "8"]
    result = hansa("plan", "--memory", *words, "--work", "sharding=none")
    assert result.exit_code == 3
    assert "8 x 40.0 GB: work.sharding is none" in result.stdout
    assert "and fits" not in result.stdout


def test_the_check_warns_where_the_memory_is_not_known(tmp_path: Path) -> None:
    node = {"gpus": 4, "gpu_memory": None, "ranks": 4}
    found = finding(tmp_path, LLAMA, "precision: mixed", node)
    assert found.state == "warning"
    assert "node.gpu_memory" in found.hint
    found = finding(tmp_path, TINY, "micro_batch: 8", {"gpus": 0, "ranks": 1})
    assert found.state == "ok"
    assert found.detail.endswith("MB a rank")
    other = "{trainer: causal-lm, source: /nowhere/my-model}"
    found = finding(tmp_path, other, "micro_batch: 8", GPUS)
    assert found.state == "unknown"


def test_a_stored_config_comes_before_a_name(tmp_path: Path) -> None:
    spec = load_federation(DOE)
    config = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 32,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = shape_of(spec, tmp_path)
    assert found is not None
    assert (found.family, found.hidden) == ("gpt2", 64)
