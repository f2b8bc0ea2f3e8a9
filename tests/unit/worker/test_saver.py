"""Checkpoints on the side: what waits for what, and what becomes of errors."""

import logging
import threading

import pytest

from hansa.core.errors import StorageFull
from hansa.worker import checkpoint
from hansa.worker.checkpoint import Progress
from hansa.worker.saver import Saver


class Trainer:
    def __init__(self):
        self.saved = 0

    def save(self, directory):
        self.saved += 1
        (directory / "state").write_text(str(self.saved))


@pytest.fixture
def gate(monkeypatch):
    """Sealing waits until this is set."""
    gate, seal = threading.Event(), checkpoint.seal

    def slow(unsealed):
        assert gate.wait(20)
        seal(unsealed)

    monkeypatch.setattr(checkpoint, "seal", slow)
    return gate


def names(directory):
    return sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))


def test_training_goes_on_while_a_checkpoint_is_made_safe(tmp_path, gate):
    trainer = Trainer()
    with Saver(tmp_path, every=0.0) as saver:
        assert saver.due()
        saver.save(Progress(base=0, step=1), trainer)
        assert names(tmp_path) == []
        assert not saver.due()
        gate.set()
        saver.wait()
        assert names(tmp_path) == ["00000001"]
        assert 0 < saver.stalled_s <= saver.longest_s


def test_a_second_one_waits_for_the_first_and_leaving_for_both(tmp_path, gate):
    trainer = Trainer()
    with Saver(tmp_path, every=1000.0) as saver:
        assert not saver.due()
        saver.save(Progress(base=0, step=1), trainer)
        threading.Timer(0.05, gate.set).start()
        saver.save(Progress(base=0, step=2), trainer)
        assert "00000001" in names(tmp_path)
    assert names(tmp_path) == ["00000001", "00000002"]
    assert checkpoint.load(tmp_path / "00000002").step == 2


def failing(monkeypatch):
    def full(unsealed):
        raise StorageFull("No space.")

    monkeypatch.setattr(checkpoint, "seal", full)


def test_a_full_disk_is_told_by_the_next_one(tmp_path, monkeypatch):
    failing(monkeypatch)
    saver = Saver(tmp_path, every=0.0)
    saver.save(Progress(base=0, step=1), Trainer())
    with pytest.raises(StorageFull), saver:
        saver.save(Progress(base=0, step=2), Trainer())


def test_the_end_of_the_training_needs_no_checkpoint(tmp_path, monkeypatch, caplog):
    failing(monkeypatch)
    with Saver(tmp_path, every=0.0) as saver:
        saver.save(Progress(base=0, step=1), Trainer())
    assert "was not kept: No space." in caplog.text
    assert saver.longest_s == 0


def test_an_error_of_the_training_is_not_hidden(tmp_path, monkeypatch, caplog):
    failing(monkeypatch)

    def train():
        with Saver(tmp_path, every=0.0) as saver:
            saver.save(Progress(base=0, step=1), Trainer())
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        train()
    assert "was not kept: No space." in caplog.text
