"""Fixtures of the worker's tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_place import Place

from hansa.worker.checkpoint import Progress, Savable
from hansa.worker.saver import Saver


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "mailbox")
    found.publish(0, seed=1)
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see the launcher that may have started the tests."""
    for name in ("RANK", "SLURM_STEP_ID", "PALS_RANKID", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write checkpoints as often as asked, however slow the disk is, and at once."""
    save = Saver.save

    def and_wait(self: Saver, progress: Progress, trainer: Savable) -> None:
        save(self, progress, trainer)
        self.wait()

    # The test's own one: two would undo what both have changed in the wrong order.
    monkeypatch.setattr("hansa.worker.saver.SHARE", 1e9)
    monkeypatch.setattr(Saver, "save", and_wait)
