"""Scaling measured in real jobs, and where a step's time goes over real ranks.

How fast anything is, is not asked here; only what was made slow on purpose must show.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ports
import pytest
from metered_rank import SLOW_S
from runs import PATIENCE_S, Bench, fill_disk, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RANK = Path(__file__).parents[1] / "helpers" / "metered_rank.py"


def parts(found: dict[str, float]) -> tuple[float, float, float]:
    """Return seconds of a step, its data and its communication, means of the ranks."""
    steps = found["measured_steps"]
    return (
        found["measured_s"] / steps,
        found["measured_data_s"] / steps,
        found["measured_communication_s"] / steps,
    )


def test_the_split_shows_which_part_was_made_slow(tmp_path: Path) -> None:
    port = ports.block(1)
    words = [sys.executable, str(RANK)]
    ranks = [
        subprocess.Popen([*words, str(rank), "2", str(port), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in ranks] == [0, 0]
    told: dict[str, dict[str, float]] = json.loads(
        (tmp_path / "report.json").read_text()
    )

    _, data, communication = parts(told["nothing"])
    assert data < SLOW_S / 4
    # Rank 0 waits for the sleeper in its all-reduce; the sleeper waits for nobody.
    step, data, communication = parts(told["rank"])
    assert step > SLOW_S
    assert data < SLOW_S / 4
    assert communication >= SLOW_S / 2 * 0.75
    assert step - data - communication >= SLOW_S / 2 * 0.75  # it counts as computing
    # The same, but the sleeper says that it gets data.
    step, data, communication = parts(told["data"])
    assert step > SLOW_S
    assert SLOW_S / 2 <= data < SLOW_S * 0.75
    assert communication >= SLOW_S / 2 * 0.75

    one = told["nothing"]
    assert one["ranks"] == 2
    assert (one["measured_samples"], one["measured_tokens"]) == (2 * 3 * 32, 3 * 30)
    assert one["tokens"] == 6 * 30
    assert one["memory_peak_bytes"] > 50e6


def write(bench: Bench) -> None:
    site = {
        "name": "bergen",
        "scheduler": {"type": "local", "slots": 2},
        "mailbox": "mailbox",
        "cache": "cache",
        "poll": {"first": "0.2s", "longest": "0.5s"},
        "tasks": {"noop": {}},
        "limits": {"nodes": 2, "jobs_in_queue": 1},
    }
    plan = {
        "name": "quick",
        "model": {"trainer": "noop", "source": "zeros"},
        "task": "noop",
        "strategy": {"name": "fedavg"},
        "stop": {"rounds": 1},
        "patience": "60s",
        "facilities": {
            "bergen": {
                "gateway": {"type": "local", "site": "bergen.yaml"},
                "mover": "posix",
                "job": {"time": "0:05:00"},
                "work": {"steps": 1, "batch": 4},
            }
        },
    }
    (bench.root / "bergen.yaml").write_text(json.dumps(site))
    (bench.root / "federation.yaml").write_text(json.dumps(plan))


def events(bench: Bench, kind: str, number: int = 1) -> list[dict[str, Any]]:
    return bench.events(kind, f"throughput/bergen/quick-throughput-{number}")


def test_a_study_goes_on_after_an_interruption_and_measures_nothing_twice(
    bench: Bench,
) -> None:
    bench.without_pictures()
    write(bench)
    command = ("bench", "throughput", "federation.yaml", "--nodes", "1,2")
    first = bench.start(*command, "--steps", "5")
    until(lambda: events(bench, "JobQueued"))
    os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130, said
    assert "give the same command again" in said

    found = bench.data(*command, "--steps", "5")
    (record,) = found["records"]
    each = record["measurements"]
    assert [(one["nodes"], one["batch"], one["steps"]) for one in each] == [
        (1, 4, 5),
        (2, 8, 5),
    ]
    for one in each:
        assert one["samples_per_s"] == pytest.approx(one["batch"] / one["step_s"])
        assert one["startup_s"] > 0
        assert one["memory_bytes"] > 20e6
        assert one["peak_share"] is None
    # The site lets one job wait at a time; each was submitted once.
    queued = [event["assignment"] for event in events(bench, "JobQueued")]
    assert sorted(queued) == ["train-0001-bergen-1", "train-0002-bergen-1"]
    assert not events(bench, "EvaluationReported")
    kept = bench.root / "runs/throughput/bergen"
    names = {path.name for path in kept.iterdir()}
    assert names == {"quick.json", "quick-throughput-1"}
    assert not (kept / "quick-throughput-1/updates").exists()

    # All is known: no job, the same record.
    assert bench.data(*command)["records"] == [record]
    assert bench.data("bench", "throughput", "--show")["records"] == [record]
    assert {path.name for path in kept.iterdir()} == names
    # What the site forbids is said before anything is spent.
    bench.hansa(*command[:-1], "1,4", code=3)
    assert "4 nodes" in bench.stderr


def test_a_full_disk_stops_a_study_and_it_goes_on(bench: Bench) -> None:
    bench.without_pictures()
    write(bench)
    command = ("bench", "throughput", "federation.yaml", "--nodes", "1", "--steps", "5")
    first = bench.start(*command)
    until(lambda: events(bench, "JobQueued"))
    fill_disk(first.pid, 1_000)
    _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 1, said
    assert "STORE_FULL" in said
    assert "quick-throughput-1/journal.jsonl" in said
    assert "Free" in said
    assert not (bench.root / "runs/throughput/bergen/quick.json").exists()

    (record,) = bench.data(*command)["records"]
    assert [one["nodes"] for one in record["measurements"]] == [1]
    queued = [event["assignment"] for event in events(bench, "JobQueued")]
    assert queued == ["train-0001-bergen-1"]
    assert not events(bench, "JobQueued", 2)


def test_a_study_that_the_facility_refuses_is_not_begun(bench: Bench) -> None:
    write(bench)
    command = ("bench", "throughput", "federation.yaml", "--nodes", "4")
    bench.hansa(*command, code=3)
    assert "Facilities that are not ready: 1 of 1. bergen: " in bench.stderr
    assert "Nothing was spent. Mend it." in bench.stderr
    assert not (bench.root / "runs/throughput/bergen").exists()
