"""job.json, the stop flag and the status file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError, WorkerError
from hansa.worker import signals
from hansa.worker.job import Job, read_file, task_plugin, trainer_plugin
from hansa.worker.signals import Interrupted, Stop, listening
from hansa.worker.status import Status


def job_data() -> dict[str, Any]:
    return {
        "schema": 1,
        "order": {
            "schema": 1,
            "run": "smol",
            "assignment": "train-0001-a-1",
            "kind": "train",
            "facility": "a",
            "round": 1,
            "steps": 3,
            "version": None,
            "seed": 1,
            "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
            "task": {"name": "digits", "data": None, "options": {}},
            "work": {},
            "update": {"dtype": "bfloat16"},
            "evaluate": True,
        },
        "key": "train-0001-a-1.1",
        "number": 1,
        "facility": "a",
        "mailbox": "/m/smol",
        "job_dir": "/m/smol/jobs/train-0001-a-1.1",
        "state_dir": "/s/smol/jobs/train-0001-a-1.1",
        "task": {"name": "digits", "source": None, "cache": "/m/cache", "options": {}},
        "from_a_newer_agent": True,
    }


def test_job_is_read_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_data()))
    job = read_file(path, Job)
    assert job.order.steps == 3
    assert job.task.test_splits is None
    assert job.heartbeat_s == 1.0


@pytest.mark.parametrize("schema", [2, None, "1"])
def test_other_schema_is_refused(tmp_path: Path, schema: object) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**job_data(), "schema": schema}))
    with pytest.raises(SpecError, match=r"has schema .* reads up to 1"):
        read_file(path, Job)


def test_wrong_field_is_named(tmp_path: Path) -> None:
    path, data = tmp_path / "job.json", job_data()
    data["order"]["steps"] = 0
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError, match=r"job\.json: order\.steps: .*greater"):
        read_file(path, Job)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("lr_scale", wrong) for wrong in (0, -1, "Infinity", "NaN")),
        *(("proximal", wrong) for wrong in (-0.1, "Infinity", "NaN")),
        *(("first", wrong) for wrong in (-1, 0.5)),
    ],
)
def test_corrections_have_bounds(tmp_path: Path, field: str, value: object) -> None:
    path, data = tmp_path / "job.json", job_data()
    data["order"][field] = float(value) if isinstance(value, str) else value
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError, match=rf"job\.json: order\.{field}"):
        read_file(path, Job)


def test_order_of_before_the_corrections(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_data()))
    order = read_file(path, Job).order
    assert (order.first, order.lr_scale, order.proximal) == (None, 1.0, 0.0)
    assert order.control == ""


def test_a_job_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_data()))
    promised = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_file(path, Job, promised.upper()).number == 1
    path.write_text(json.dumps({**job_data(), "modules": ["os:system"]}))
    with pytest.raises(WorkerError, match="changed after it was submitted") as caught:
        read_file(path, Job, promised)
    assert not caught.value.transient


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(SpecError):
        read_file(path, Job)


@pytest.mark.parametrize("name", ["causal-lm", "softmax", "torch-module"])
def test_builtin_trainers_have_a_batch(name: str) -> None:
    assert "batch" in trainer_plugin(name).work_options.model_fields


@pytest.mark.parametrize("name", ["chem-instruct", "digits"])
def test_builtin_tasks_have_defaults(name: str) -> None:
    assert task_plugin(name).options()


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signal_asks_to_stop_and_handlers_are_restored(number: int) -> None:
    before = signal.getsignal(number)
    stop = Stop()
    with listening(stop):
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"signal {signal.Signals(number).name}"
        with pytest.raises(Interrupted):
            stop.check()
    assert signal.getsignal(number) == before


def test_deadline_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop(50.0)
    monkeypatch.setattr(signals.time, "monotonic", lambda: 49.9)
    assert stop.reason is None
    monkeypatch.setattr(signals.time, "monotonic", lambda: 50.0)
    assert stop.reason == "walltime nearly over"


def test_status_has_all_fields(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = Status(path, 30, every=0.0)
    status.enter("training", base=2)
    status.beat(4, 1.5, 100.0)
    data = json.loads(path.read_text())
    assert data.pop("at") > 1e9
    assert data.pop("host") == os.uname().nodename
    assert data == {
        "schema": 1,
        "phase": "training",
        "base": 2,
        "step": 4,
        "steps": 30,
        "loss": 1.5,
        "samples_per_s": 100.0,
        "pid": os.getpid(),
        "error": None,
        "training": {},
    }


def test_heartbeats_are_rare_and_phases_are_not(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = Status(path, 30, every=3600.0)
    status.enter("training", base=2)
    status.beat(4, 1.5, 100.0)
    assert json.loads(path.read_text())["step"] == 0
    status.fail(WorkerError("It broke.", hint="Mend it.", transient=True))
    data = json.loads(path.read_text())
    assert (data["phase"], data["step"]) == ("failed", 4)
    assert data["error"] == {
        "code": "WORKER",
        "message": "It broke.",
        "hint": "Mend it.",
        "transient": True,
    }


def test_status_that_can_not_be_written_does_not_stop_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        Status(tmp_path / "file" / "status.json", 3, every=0.0).enter("training")
    assert "could not be written" in caplog.text
