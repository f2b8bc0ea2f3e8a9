"""What leaves the job: an update or an evaluation, in the mailbox's `updates/`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from hansa.core.errors import StoreError
from hansa.mailbox.paths import MANIFEST, Mailbox
from hansa.store import codec
from hansa.store.folder import reader
from hansa.store.manifest import read_version_manifest
from hansa.store.update import Measured, deltas, write_evaluation, write_update
from hansa.store.verify import verify_files
from hansa.worker.base import Array
from hansa.worker.checkpoint import Progress
from hansa.worker.feedback import Feedback
from hansa.worker.job import Order

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Timings:
    """Where the time of a job went, in seconds.

    Attributes:
        startup_s: From the start of the process (or, in an allocation, of the order)
            to the first step, without `hold_s`.
        hold_s: Waiting for the word to begin.
        train_s: In steps, over all jobs of the assignment.
        eval_s: Evaluating the local model, or the version.
        write_s: Writing checkpoints and the update.
    """

    startup_s: float = 0.0
    hold_s: float = 0.0
    train_s: float = 0.0
    eval_s: float = 0.0
    write_s: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the seconds by name."""
        return {
            "startup_s": self.startup_s,
            "hold_s": self.hold_s,
            "train_s": self.train_s,
            "eval_s": self.eval_s,
            "write_s": self.write_s,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What a job has measured.

    Attributes:
        progress: Steps, samples and training losses.
        losses: Test loss by task; empty if there was no evaluation.
        timings: Where the time went.
        examples: How many examples the facility trains on; 0: not known.
    """

    progress: Progress
    losses: Mapping[str, float] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    examples: int = 0

    def metrics(self) -> dict[str, float]:
        """Return the numbers that sum the job up, by name."""
        progress, found = self.progress, {}
        if progress.step:
            found["train_loss"] = progress.loss_sum / progress.step
            found["samples_per_s"] = progress.samples / max(progress.train_s, 1e-9)
        if progress.loss_last is not None:
            found["train_loss_last"] = progress.loss_last
        if progress.lr_sum is not None:
            found["lr_sum"] = progress.lr_sum
        if self.examples:
            found["examples"] = float(self.examples)
        if self.losses:
            found["eval_loss"] = fmean(self.losses.values())
        return found


def delivered(mailbox: Mailbox, order: Order) -> bool:
    """Tell whether the order's update (or evaluation) is in the mailbox."""
    return (mailbox.update(order.assignment) / MANIFEST).is_file()


def verify_version(directory: Path) -> None:
    """Compare all bytes of a version with its manifest.

    Raises:
        StoreError: There is no manifest.
        IntegrityError: Something differs.
    """
    verify_files(directory, read_version_manifest(directory).files)


def deliver_update(
    mailbox: Mailbox,
    order: Order,
    result: Result,
    tensors: Iterable[tuple[str, Array]],
) -> None:
    """Write the trained tensors' differences to the base, and the manifest.

    In int8 what rounding cost the facility's update before comes on top (`feedback`).

    Args:
        mailbox: The run's mailbox; must hold the base version.
        order: What was asked.
        result: What was done; its `write_s` is completed here.
        tensors: The trained model, sorted by name.

    Raises:
        UpdateRejected: A number is not finite, or a shape is not the base's.
        StoreError: The trainer yields other tensors than the base has.
        StorageFull: No space; nothing is left behind.
    """
    progress, version = result.progress, mailbox.version(result.progress.base)
    timings = result.timings.to_json()
    shapes = dict(sorted(read_version_manifest(version).floating_shapes().items()))
    with _first_wins(mailbox, order), reader(version) as base:
        source, lost = _timed(deltas(base, tensors), timings), None
        if order.update.dtype == codec.NAME:
            feedback = Feedback(mailbox, order.assignment, shapes)
            source, lost = feedback.added(source), feedback.keep
        write_update(
            mailbox.update(order.assignment),
            shapes,
            source,
            Measured(
                assignment=order.assignment,
                facility=order.facility,
                base=progress.base,
                base_sha256=progress.base_sha256,
                steps=progress.step,
                samples=progress.samples,
                partial=order.steps is not None and progress.step < order.steps,
                metrics=result.metrics(),
                losses=result.losses,
                timings=timings,
            ),
            dtype=order.update.dtype,
            compress=order.update.compress,
            lost=lost,
        )


def deliver_evaluation(mailbox: Mailbox, order: Order, result: Result) -> None:
    """Write the test losses of a version; raises as `deliver_update` does."""
    measured = Measured(
        assignment=order.assignment,
        facility=order.facility,
        base=result.progress.base,
        base_sha256=result.progress.base_sha256,
        metrics=result.metrics(),
        losses=result.losses,
        timings=result.timings.to_json(),
    )
    with _first_wins(mailbox, order):
        write_evaluation(mailbox.update(order.assignment), measured)


@contextmanager
def _first_wins(mailbox: Mailbox, order: Order) -> Iterator[None]:
    """Let another job of the assignment be faster: its result is as good."""
    try:
        yield
    except (StoreError, OSError) as error:
        if not delivered(mailbox, order):
            raise
        log.info("Another job of %s has delivered: %s", order.assignment, error)


def _timed(
    tensors: Iterable[tuple[str, Array]], timings: dict[str, float]
) -> Iterator[tuple[str, Array]]:
    """Pass the tensors on; then add the time it took to `timings`.

    The manifest is written after the last tensor, so it has that time in it.
    """
    began = time.monotonic()
    yield from tensors
    timings["write_s"] += time.monotonic() - began
