"""A job's local checkpoints, from which a later job of the assignment goes on.

::

    <job_dir>/checkpoint/00000012/checkpoint.json   progress, size and sha256 of files
    <job_dir>/checkpoint/00000012/<trainer's files>

Written aside, fsynced and renamed; the newest two are kept, and none once the
update is delivered.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import HansaError, IntegrityError, PolicyError
from hansa.mailbox.files import fsync_dir, storage_full, write_json
from hansa.mailbox.links import link_to
from hansa.mailbox.paths import Mailbox
from hansa.worker.job import read_file

log = logging.getLogger(__name__)

KEPT = 2
RECORD = "checkpoint.json"

Count = Annotated[int, Field(ge=0)]


class Progress(BaseModel):
    """What an assignment has done so far, over all of its jobs.

    Attributes:
        base: The version that the training began from.
        base_sha256: Hash of its model, from its manifest.
        step: Optimizer steps done.
        samples: Training samples seen.
        loss_sum: Sum of the steps' losses.
        loss_last: Loss of the last step, None before the first.
        train_s: Seconds spent in steps.
        lr_sum: Sum of the steps' learning rates; None unless all were plain SGD.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Count
    base_sha256: str | None = None
    step: Count = 0
    samples: Count = 0
    loss_sum: float = 0.0
    loss_last: float | None = None
    train_s: Annotated[float, Field(ge=0)] = 0.0
    lr_sum: Annotated[float, Field(ge=0)] | None = None

    def after(
        self, loss: float, samples: int, seconds: float, rate: float | None = None
    ) -> Progress:
        """Return the progress after one more step.

        Args:
            loss: Loss of the step.
            samples: Samples that it has seen.
            seconds: Time that it took.
            rate: Its learning rate, if it was plain SGD.
        """
        known = rate is not None and (self.step == 0 or self.lr_sum is not None)
        return Progress(
            base=self.base,
            base_sha256=self.base_sha256,
            step=self.step + 1,
            samples=self.samples + samples,
            loss_sum=self.loss_sum + loss,
            loss_last=loss,
            train_s=self.train_s + seconds,
            lr_sum=(self.lr_sum or 0.0) + (rate or 0.0) if known else None,
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bytes: Count
    sha256: str


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    progress: Progress
    files: dict[str, _File]


@dataclass(frozen=True, slots=True)
class Unsealed:
    """A checkpoint that is written, but not yet safe: aside, and not on the disk.

    Attributes:
        aside: Where its files are.
        final: What it is called once it counts.
        progress: How far the training was.
    """

    aside: Path
    final: Path
    progress: Progress


class Savable(Protocol):
    """What writes its state as a trainer does."""

    def save(self, directory: Path) -> None:
        """Write all that is needed to go on."""
        ...


def write(directory: Path, progress: Progress, trainer: Savable) -> Unsealed | None:
    """Write a checkpoint's files aside, while the training stands still.

    What an earlier, killed process of the same job left half-written is removed. None:
    the trainer has written nothing, as a program of one's own that can't save.

    Raises:
        PolicyError: A symbolic link leads elsewhere.
        StorageFull: There is no space; older checkpoints are still there.
        OSError: The directory can't be written.
    """
    if _is_linked(directory):
        raise PolicyError(
            f"{directory} is, or is reached through, a symbolic link.",
            hint="Find out who has put it there, and remove it.",
        )
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"{progress.step:08d}"
    for half in directory.glob(".*"):
        shutil.rmtree(half)
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=directory))
    with _removed_if_it_fails(aside), storage_full(final):
        trainer.save(aside)
        if not any(aside.iterdir()):
            aside.rmdir()
            return None
    return Unsealed(aside, final, progress)


def seal(unsealed: Unsealed) -> None:
    """Make a checkpoint safe and let it count; keep it and the newest one before it.

    It takes long, as all is hashed and has to reach the disk; but the training may go
    on meanwhile.

    Raises:
        StorageFull: There is no space; older checkpoints are still there.
        OSError: The directory can't be written.
    """
    aside, final = unsealed.aside, unsealed.final
    with _removed_if_it_fails(aside), storage_full(final):
        files = {path.name: _synced(path) for path in sorted(aside.iterdir())}
        progress = unsealed.progress.model_dump()
        write_json(aside / RECORD, {"schema": 1, "progress": progress, "files": files})
        if final.exists():  # requeued, and it could not be resumed from
            shutil.rmtree(final)
        aside.rename(final)
        fsync_dir(final.parent)
    others = [path for path in steps(final.parent) if path != final]
    for older in others[KEPT - 1 :]:
        shutil.rmtree(older, ignore_errors=True)


def save(directory: Path, progress: Progress, trainer: Savable) -> None:
    """Write and seal a checkpoint; raises as `write` and `seal` do."""
    unsealed = write(directory, progress, trainer)
    if unsealed is not None:
        seal(unsealed)


@contextmanager
def _removed_if_it_fails(aside: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def newest(directory: Path) -> Path | None:
    """Return the newest checkpoint in `directory`, or None."""
    return next(iter(steps(directory)), None)


def load(path: Path) -> Progress:
    """Verify the checkpoint at `path` and return its progress.

    Raises:
        HansaError: A file is missing or differs, or the record can't be read.
    """
    record = read_file(path / RECORD, _Record)
    for name, expected in record.files.items():
        file = path / name
        if not file.is_file() or _digest(file) != expected.model_dump():
            raise IntegrityError(f"{file} is damaged.")
    return record.progress


def saved(
    mailbox: Mailbox, assignment: str, number: int
) -> Iterator[tuple[Path, Progress]]:
    """Yield the valid checkpoints of an assignment, the newest first.

    Args:
        mailbox: The run's mailbox.
        assignment: Id of the assignment.
        number: The present job; its own checkpoints count too, as a scheduler may
            have requeued it. Damaged ones are logged and left out.
    """
    for job in range(number, 0, -1):
        for path in steps(mailbox.job(assignment, job).checkpoint):
            try:
                yield path, load(path)
            except (HansaError, OSError) as error:
                log.warning("Checkpoint %s is skipped: %s", path, error)


def remove(mailbox: Mailbox, assignment: str, number: int) -> None:
    """Remove all checkpoints of an assignment's jobs up to `number`.

    They are as large as model and optimizer together, and nobody needs them after
    the update is delivered. What can't be removed is left and logged.
    """
    for job in range(1, number + 1):
        directory = mailbox.job(assignment, job).checkpoint
        if not directory.is_dir() or _is_linked(directory):
            continue
        try:
            shutil.rmtree(directory)
        except OSError as error:
            log.warning("Checkpoints in %s were left: %s", directory, error)


def _is_linked(directory: Path) -> bool:
    """Tell whether a job's checkpoints would be somewhere else."""
    return directory.is_symlink() or link_to(directory.parent) is not None


def steps(directory: Path) -> list[Path]:
    """Return the checkpoints in a directory that count, the newest first."""
    if not directory.is_dir() or _is_linked(directory):
        return []
    found = (path for path in directory.iterdir() if path.name.isdecimal())
    return sorted(found, reverse=True)


def _synced(path: Path) -> dict[str, int | str]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _digest(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
