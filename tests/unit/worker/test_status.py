"""The status file: what others see of it, and when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hansa.core.errors import WorkerError
from hansa.worker.status import Status


def test_an_error_is_seen_before_the_disk_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that saw another rank end may kill this one while it waits."""
    path, seen = tmp_path / "status.json", list[str]()

    def wait(handle: int) -> None:
        seen.append(json.loads(path.read_text())["error"]["message"])

    monkeypatch.setattr("os.fsync", wait)
    Status(path, steps=6, every=1.0).fail(WorkerError("Rank 1 has ended."))
    assert seen
    assert set(seen) == {"Rank 1 has ended."}


def test_a_heartbeat_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: pytest.fail("it waits"))
    path = tmp_path / "status.json"
    status = Status(path, steps=6, every=0.0)
    status.beat(step=3, loss=0.5, samples_per_s=8.0)
    assert json.loads(path.read_text())["step"] == 3
