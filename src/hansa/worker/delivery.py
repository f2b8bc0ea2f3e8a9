"""What leaves the job: an update or an evaluation, in the mailbox's `updates/`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Self

from hansa.core.errors import StoreError
from hansa.mailbox.paths import MANIFEST, Mailbox
from hansa.store import codec
from hansa.store.folder import reader
from hansa.store.manifest import read_version_manifest
from hansa.store.update import Measured, deltas, write_evaluation, write_update
from hansa.store.verify import verify_files
from hansa.worker.base import Array, Report
from hansa.worker.checkpoint import Progress
from hansa.worker.feedback import Feedback
from hansa.worker.job import Order
from hansa.worker.pipe import Pipe

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
        report: What the trainer tells of its work.
        scores: What generated answers score, by the names of `hansa.core.scores`.
    """

    progress: Progress
    losses: Mapping[str, float] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    examples: int = 0
    report: Report = field(default_factory=Report)
    scores: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the numbers that sum the job up, by name."""
        progress, numbers = self.progress, self.report.numbers
        found = {name: one for name, one in numbers.items() if math.isfinite(one)}
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
        return found | dict(self.scores)


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


class Delivery:
    """Writes an update on a thread, so that the model can be evaluated meanwhile.

    The tensors' differences to the base are written as they come; what was measured
    follows, and only then the update counts. In int8 what rounding cost the facility's
    update before comes on top (`feedback`). Left without `finish`, nothing stays.

    Args:
        mailbox: The run's mailbox; must hold the base version.
        order: What was asked.
        progress: What was trained.
    """

    def __init__(self, mailbox: Mailbox, order: Order, progress: Progress) -> None:
        self._mailbox, self._order, self._progress = mailbox, order, progress
        self._pipe = Pipe()
        self._result: Future[Result] = Future()
        self._metrics: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self._training: dict[str, str] = {}
        self._timings: dict[str, float] = {}
        self._stalled_s = 0.0
        self._finishing = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="delivery")
        self._written = self._thread.submit(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._result.cancel()
        self._thread.shutdown()

    def send(self, tensors: Iterable[tuple[str, Array]]) -> None:
        """Hand over the trained model, sorted by name; returns when all is taken.

        Even if the disk is full by now: a trainer of many ranks must get to its end.
        """
        began = time.monotonic()
        for name, value in tensors:
            self._pipe.put(name, value)
        self._pipe.close()
        self._stalled_s += time.monotonic() - began

    def finish(self, result: Result) -> None:
        """Say what was measured, and wait until the update is there.

        Args:
            result: Its `write_s` is completed here, by the time that the job stood
                still for the update.

        Raises:
            UpdateRejected: A number is not finite, or a shape is not the base's.
            StoreError: The trainer yields other tensors than the base has.
            StorageFull: No space; nothing is left behind.
        """
        self._finishing = time.monotonic()
        self._result.set_result(result)
        with _first_wins(self._mailbox, self._order):
            self._written.result()

    def _write(self) -> None:
        try:
            self._write_all(self._mailbox.version(self._progress.base))
        finally:  # whatever it was: `send` may wait for room
            self._pipe.drain()

    def _write_all(self, version: Path) -> None:
        order, mailbox = self._order, self._mailbox
        shapes = dict(sorted(read_version_manifest(version).floating_shapes().items()))
        with reader(version) as base:
            source, lost = deltas(base, self._pipe), None
            if order.update.dtype == codec.NAME:
                feedback = Feedback(mailbox, order.assignment, shapes)
                source, lost = feedback.added(source), feedback.keep
            write_update(
                mailbox.update(order.assignment),
                shapes,
                self._and_then(source),
                self._measured(),
                dtype=order.update.dtype,
                compress=order.update.compress,
                lost=lost,
            )

    def _measured(self) -> Measured:
        order, progress = self._order, self._progress
        return Measured(
            assignment=order.assignment,
            facility=order.facility,
            base=progress.base,
            base_sha256=progress.base_sha256,
            steps=progress.step,
            samples=progress.samples,
            partial=order.steps is not None and progress.step < order.steps,
            metrics=self._metrics,
            losses=self._losses,
            timings=self._timings,
            training=self._training,
        )

    def _and_then(
        self, tensors: Iterable[tuple[str, Array]]
    ) -> Iterator[tuple[str, Array]]:
        """Pass the tensors on; then wait for what was measured, and fill it in.

        The manifest is written after the last tensor, so it has that in it.
        """
        yield from tensors
        result = self._result.result()
        waited = self._stalled_s + time.monotonic() - self._finishing
        result.timings.write_s += waited
        self._metrics.update(result.metrics())
        self._losses.update(result.losses)
        self._training.update(result.report.words)
        self._timings.update(result.timings.to_json())


def deliver_update(
    mailbox: Mailbox,
    order: Order,
    result: Result,
    tensors: Iterable[tuple[str, Array]],
) -> None:
    """Write an update whose measurements are known already; raises as `Delivery`."""
    with Delivery(mailbox, order, result.progress) as delivery:
        delivery.send(tensors)
        delivery.finish(result)


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
        training=result.report.words,
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
