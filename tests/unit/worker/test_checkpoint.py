"""Checkpoints: whole or absent, the newest two kept, damaged ones passed over."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from hansa.core.errors import PolicyError
from hansa.mailbox.paths import Mailbox
from hansa.worker import checkpoint
from hansa.worker.base import Array, Correction, Example, TensorReader
from hansa.worker.checkpoint import Progress

ASSIGNMENT = "train-0001-a-1"


class Counter:
    """A trainer whose whole state is one number."""

    def __init__(self, value: int = 0, fails: bool = False) -> None:
        self.value, self.fails = value, fails

    def tensors(self) -> Iterator[tuple[str, Array]]:
        yield "value", np.array([self.value])

    def load(self, read: TensorReader) -> None:
        raise NotImplementedError

    def correct(self, correction: Correction) -> None:
        raise NotImplementedError

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        raise NotImplementedError

    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        (directory / "value").write_text(str(self.value))
        if self.fails:
            raise OSError(5, "Input/output error")

    def restore(self, directory: Path) -> None:
        self.value = int((directory / "value").read_text())


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path, "run")


def write(mailbox: Mailbox, job: int, step: int, base: int = 0) -> Path:
    directory = mailbox.job(ASSIGNMENT, job).checkpoint
    progress = Progress(base=base, step=step, samples=4 * step, loss_sum=0.1 * step)
    checkpoint.save(directory, progress, Counter(step))
    return directory / f"{step:08d}"


def steps(mailbox: Mailbox, number: int) -> list[int]:
    return [p.step for _, p in checkpoint.saved(mailbox, ASSIGNMENT, number)]


def test_what_is_saved_is_read_back(mailbox: Mailbox) -> None:
    path = write(mailbox, 1, 3, base=2)
    found = list(checkpoint.saved(mailbox, ASSIGNMENT, 2))
    progress = Progress(base=2, step=3, samples=12, loss_sum=0.1 * 3)
    assert found == [(path, progress)]
    trainer = Counter()
    trainer.restore(path)
    assert trainer.value == 3


def test_newest_two_are_kept(mailbox: Mailbox) -> None:
    for step in (1, 2, 9, 10):
        path = write(mailbox, 1, step)
    assert sorted(p.name for p in path.parent.iterdir()) == ["00000009", "00000010"]


def test_later_jobs_come_first_and_later_still_do_not_count(mailbox: Mailbox) -> None:
    for job, step in ((1, 5), (1, 6), (2, 8), (3, 9)):
        write(mailbox, job, step)
    assert steps(mailbox, 2) == [8, 6, 5]
    assert steps(mailbox, 3) == [9, 8, 6, 5]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "record"])
def test_damaged_checkpoint_is_skipped_with_a_reason(
    mailbox: Mailbox, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    write(mailbox, 1, 5)
    path = write(mailbox, 1, 6)
    if damage == "truncated":
        (path / "value").write_text("")
    elif damage == "flipped":
        (path / "value").write_text("7")
    elif damage == "missing":
        (path / "value").unlink()
    else:
        (path / "checkpoint.json").write_text('{"schema": 1}')
    with caplog.at_level(logging.WARNING):
        assert steps(mailbox, 2) == [5]
    assert str(path) in caplog.text


def test_failed_save_leaves_nothing_and_keeps_the_older(mailbox: Mailbox) -> None:
    write(mailbox, 1, 5)
    directory = mailbox.job(ASSIGNMENT, 1).checkpoint
    with pytest.raises(OSError, match="Input/output"):
        checkpoint.save(directory, Progress(base=0, step=6), Counter(6, fails=True))
    assert [path.name for path in directory.iterdir()] == ["00000005"]
    assert steps(mailbox, 2) == [5]


def test_progress_adds_up() -> None:
    progress = Progress(base=1).after(0.5, 4, 0.25).after(0.25, 4, 0.5)
    assert progress == Progress(
        base=1, step=2, samples=8, loss_sum=0.75, loss_last=0.25, train_s=0.75
    )


def test_rates_add_up_while_all_are_known() -> None:
    fresh = Progress(base=1)
    assert fresh.lr_sum is None
    progress = fresh.after(0.5, 4, 0.1, 0.25).after(0.5, 4, 0.1, 0.5)
    assert progress.lr_sum == 0.75
    unknown = progress.after(0.5, 4, 0.1, None)
    assert unknown.lr_sum is None
    assert unknown.after(0.5, 4, 0.1, 0.5).lr_sum is None


def test_checkpoint_of_before_the_rates_were_noted(mailbox: Mailbox) -> None:
    path = write(mailbox, 1, 3)
    record = json.loads((path / "checkpoint.json").read_text())
    del record["progress"]["lr_sum"]
    (path / "checkpoint.json").write_text(json.dumps(record))
    found = checkpoint.load(path)
    assert found.step == 3
    assert found.after(0.5, 4, 0.1, 0.25).lr_sum is None


def test_requeued_job_replaces_what_it_could_not_use(mailbox: Mailbox) -> None:
    write(mailbox, 1, 9)
    path = write(mailbox, 1, 2)
    (path / "value").write_text("damaged")
    (path.parent / ".00000003.x").mkdir()
    write(mailbox, 1, 2)
    assert checkpoint.load(path).step == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["00000002", "00000009"]


def test_nothing_is_left_after_removal(mailbox: Mailbox) -> None:
    for job in (1, 2):
        write(mailbox, job, 5)
    checkpoint.remove(mailbox, ASSIGNMENT, 3)
    assert steps(mailbox, 3) == []
    checkpoint.remove(mailbox, ASSIGNMENT, 3)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_no_link_is_followed(tmp_path: Path, levels: int) -> None:
    """A server that may write the mailbox must not reach the home directory by it."""
    mailbox = Mailbox(tmp_path / "root", "run")
    checkpoints = mailbox.job(ASSIGNMENT, 1).checkpoint
    link = (checkpoints, *checkpoints.parents)[levels]
    home = tmp_path / "home"
    write(mailbox, 1, 3)
    link.rename(home)
    inner = home / checkpoints.relative_to(link)
    (inner / ".ssh").mkdir()
    (inner / ".ssh" / "key").touch()
    before = sorted(home.rglob("*"))
    link.symlink_to(home)
    with pytest.raises(PolicyError, match="symbolic link"):
        write(mailbox, 1, 5)
    checkpoint.remove(mailbox, ASSIGNMENT, 1)
    assert steps(mailbox, 1) == []
    assert sorted(home.rglob("*")) == before
