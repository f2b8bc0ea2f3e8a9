"""The life of one order: bind, verify, train, evaluate, deliver.

::

    starting -> waiting -> training -> evaluating -> saving -> done
    any of them -> failed, with the error as JSON, or cancelled
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from hansa.core.errors import HansaError, SpecError, WorkerError
from hansa.core.rng import derive_seed
from hansa.mailbox.paths import JobDir, Mailbox
from hansa.mailbox.state import JobNotes
from hansa.store.folder import reader
from hansa.worker import checkpoint, delivery
from hansa.worker.base import (
    Correction,
    Example,
    PlainSteps,
    Task,
    Trainer,
    TrainerContext,
    resolve,
)
from hansa.worker.binding import Binding, bind, control_dir
from hansa.worker.checkpoint import Progress
from hansa.worker.data import Batches
from hansa.worker.delivery import Result, Timings
from hansa.worker.job import Job, task_plugin, trainer_plugin, validated
from hansa.worker.signals import Interrupted, Stop
from hansa.worker.status import Status
from hansa.worker.waiting import Clock, GivenUp, Leave, there
from hansa.worker.walltime import Walltime

log = logging.getLogger(__name__)

CHECKPOINT_SHARE = 0.1
"""Checkpoints take at most this share of the time; slow ones become rarer."""


@dataclass(slots=True)
class Session:
    """One order from its start to its update.

    Args:
        job: What to do.
        stop: Says when to stop early.
        started: When the process began, or the order in an allocation was taken, by
            `time.monotonic`.
        walltime: When the batch job ends.
        hosted: Whether another job's allocation works on it: then the order alone can
            be given up.
        clock: The time of all that is waited for.
        save_s: Seconds of the longest checkpoint, of this order or one before it in
            the same allocation.
    """

    job: Job
    stop: Stop
    started: float
    walltime: Walltime = field(default_factory=Walltime)
    hosted: bool = False
    clock: Clock = field(default_factory=Clock)
    save_s: float = 0.0
    mailbox: Mailbox = field(init=False)
    files: JobDir = field(init=False)
    status: Status = field(init=False)
    timings: Timings = field(default_factory=Timings)
    _leave: Leave = field(init=False)

    def __post_init__(self) -> None:
        job, order = self.job, self.job.order
        self.mailbox = Mailbox(job.mailbox.parent, job.mailbox.name)
        self.files = self.mailbox.job(order.assignment, job.number)
        self.status = Status(self.files.status, order.steps, job.heartbeat_s)
        leave = JobNotes(job.state_dir).leave if self.hosted else None
        self._leave = Leave(leave, job.pause_s, self.clock)

    def run(self) -> None:
        """Do what is ordered; nothing if its update is there already.

        Raises:
            HansaError: The order failed; the status file says so, too.
        """
        if delivery.delivered(self.mailbox, self.job.order):
            self._done_before()
            return
        self.status.enter("starting")
        try:
            self._leave.check()
            if self.job.order.kind == "evaluate":
                self._evaluate_version()
            else:
                self._train()
        except GivenUp:
            log.info("The order %s was given up.", self.job.order.assignment)
            self._remove_checkpoints()
            self.status.enter("cancelled")
        except Exception as error:
            failure = as_hansa_error(error)
            log.exception("Job failed: %s", failure.message)
            self.status.fail(failure)
            if failure is error:
                raise
            raise failure from error
        else:
            self.status.enter("done")

    def _done_before(self) -> None:
        """Finish what a process that was killed after its delivery has left."""
        log.info("The update of %s is there already.", self.job.order.assignment)
        self._remove_checkpoints()
        if self.files.status.exists():
            self.status.enter("done")

    def _remove_checkpoints(self) -> None:
        checkpoint.remove(self.mailbox, self.job.order.assignment, self.job.number)

    def _train(self) -> None:
        order = self.job.order
        task = build_task(self.job)
        batches = self.batches(task)
        test = self._test(task) if order.evaluate else ()
        self._hold()
        binding = bind(self.job, self.mailbox)
        log.info("%s trains from version %d.", order.assignment, binding.version)
        trainer, progress = self._trainer(binding)
        self._has_started()
        self.status.enter("training", base=binding.version)
        progress = self._steps(trainer, batches, progress)
        losses = self._losses(trainer, test) if self.stop.reason is None else {}
        self._leave.check()
        self.status.enter("saving")
        self.timings.train_s = progress.train_s
        result = Result(progress, losses, self.timings, batches.examples)
        delivery.deliver_update(self.mailbox, order, result, trainer.tensors())
        log.info("Delivered %d of %s steps.", progress.step, order.steps)
        self._remove_checkpoints()

    def _hold(self) -> None:
        """Wait for the word to begin; not again in a job that has begun before."""
        if not self.job.hold_s or self.files.bound.exists():
            return
        word = JobNotes(self.job.state_dir).begin
        began = self.clock.now()
        self.status.enter("waiting")
        while not there(word) and self.clock.now() - began < self.job.hold_s:
            self._leave.check()
            if self.stop.reason is not None:
                raise WorkerError(
                    "The job had to stop while it waited for the others: "
                    f"{self.stop.reason}.",
                    hint="Ask for a longer walltime, or a shorter `start_together`.",
                    transient=True,
                )
            self.status.beat()
            self.clock.sleep(self.job.pause_s)
        self.timings.hold_s = self.clock.now() - began
        log.info("Held for %.1f s; the work begins.", self.timings.hold_s)

    def _has_started(self) -> None:
        since = time.monotonic() - self.started
        self.timings.startup_s = max(since - self.timings.hold_s, 0.0)

    def batches(self, task: Task) -> Batches:
        """Return the order's batches of the facility's training examples.

        Raises:
            SpecError: The order's `work` or `steps`, or the groups, make no sense.
            WorkerError: There is no example.
        """
        order = self.job.order
        work = trainer_plugin(order.model.trainer).work_options
        batch = int(validated(work, order.work, "work").model_dump()["batch"])
        before = (max(order.round, 1) - 1) * ordered_steps(self.job)
        return Batches(
            task.load("train", self.job.task.splits),
            batch,
            seed=order.seed,
            facility=order.facility,
            first=before if order.first is None else order.first,
        )

    def _trainer(self, binding: Binding) -> tuple[Trainer, Progress]:
        """Build the trainer at the version, or at the checkpoint if it can be read."""
        delivery.verify_version(binding.directory)
        control = control_dir(self.job.order, self.mailbox)
        if control is not None:  # a state's manifest has the form of a version's
            delivery.verify_version(control)
        trainer = self._loaded(binding)
        if binding.checkpoint is None:
            return trainer, binding.progress
        try:
            trainer.restore(binding.checkpoint)
        except WorkerError as error:
            log.warning("Starting again from version %d: %s", binding.version, error)
            return self._loaded(binding), binding.anew()
        return trainer, binding.progress

    def _loaded(self, binding: Binding) -> Trainer:
        trainer = build_trainer(self.job, binding.directory)
        with reader(binding.directory) as version:
            trainer.load(version.read)
        self._correct(trainer)
        return trainer

    def _correct(self, trainer: Trainer) -> None:
        order = self.job.order
        control = control_dir(order, self.mailbox)
        with reader(control) if control else nullcontext() as state:
            trainer.correct(
                Correction(
                    lr_scale=order.lr_scale,
                    proximal=order.proximal,
                    control=state.read if state else None,
                )
            )

    def _steps(
        self, trainer: Trainer, batches: Batches, progress: Progress
    ) -> Progress:
        steps = ordered_steps(self.job)
        saved_at, save_s = time.monotonic(), 0.0
        while progress.step < steps and self.stop.reason is None:
            progress = self._step(trainer, batches[progress.step], progress)
            pause = max(self.job.checkpoint_s, save_s / CHECKPOINT_SHARE)
            if progress.step < steps and time.monotonic() - saved_at >= pause:
                save_s = self._save(trainer, progress)
                self.save_s = max(self.save_s, save_s)
                if self.walltime.ends is not None:
                    self.stop.deadline = self.walltime.deadline(self.save_s)
                saved_at = time.monotonic()
        if progress.step < steps:
            log.warning("Stopping at step %d: %s.", progress.step, self.stop.reason)
            if progress.step == 0:
                raise WorkerError(
                    f"The job had to stop before its first step: {self.stop.reason}.",
                    hint="Ask for a longer walltime if this happens again.",
                    transient=True,
                )
            self._save(trainer, progress)
        return progress

    def _step(
        self, trainer: Trainer, batch: Sequence[Example], progress: Progress
    ) -> Progress:
        began = time.monotonic()
        rate = trainer.plain_rate if isinstance(trainer, PlainSteps) else None
        loss = trainer.step(batch)
        if not math.isfinite(loss):
            raise WorkerError(
                f"The training loss became {loss} at step {progress.step + 1} of "
                f"{self.job.order.steps}.",
                hint="Lower the learning rate (`work.lr`) of this facility.",
            )
        seconds = time.monotonic() - began
        progress = progress.after(loss, len(batch), seconds, rate)
        speed = progress.samples / max(progress.train_s, 1e-9)
        self.status.beat(progress.step, loss, speed)
        self._leave.check()
        return progress

    def _save(self, trainer: Trainer, progress: Progress) -> float:
        """Write a checkpoint and return the seconds it took."""
        began = time.monotonic()
        checkpoint.save(self.files.checkpoint, progress, trainer)
        seconds = time.monotonic() - began
        self.timings.write_s += seconds
        return seconds

    def _test(self, task: Task) -> Sequence[Example]:
        return task.load("test", self.job.task.test_splits)

    def _losses(self, trainer: Trainer, test: Sequence[Example]) -> Mapping[str, float]:
        """Return the test loss by task; nothing if the job has to stop meanwhile."""
        if not test:
            return {}
        self.status.enter("evaluating")
        began = time.monotonic()
        try:
            return trainer.evaluate(self._watched(test))
        except Interrupted as why:
            log.warning("The evaluation is left out: %s.", why)
            return {}
        finally:
            self.timings.eval_s = time.monotonic() - began

    def _watched(self, examples: Sequence[Example]) -> Iterator[Example]:
        """Yield the examples with heartbeats, until it is time to stop."""
        for example in examples:
            self.stop.check()
            self._leave.check()
            self.status.beat()
            yield example

    def _evaluate_version(self) -> None:
        test = self._test(build_task(self.job))
        binding = bind(self.job, self.mailbox)
        trainer, _ = self._trainer(binding)
        self._has_started()
        self.status.enter("evaluating", base=binding.version)
        losses = self._losses(trainer, test)
        if not losses:
            raise WorkerError(
                f"The evaluation of version {binding.version} was stopped: "
                f"{self.stop.reason or 'there is no test example'}.",
                transient=self.stop.reason is not None,
            )
        self.status.enter("saving")
        result = Result(binding.progress, losses, self.timings)
        delivery.deliver_evaluation(self.mailbox, self.job.order, result)


def build_task(job: Job) -> Task:
    """Return the task of a job; raises PluginError or SpecError."""
    plugin = task_plugin(job.task.name)
    options = validated(plugin.options, job.task.options, "task.options")
    job.task.cache.mkdir(parents=True, exist_ok=True)
    task: Task = resolve(plugin.target)(job.task.source, job.task.cache, options)
    return task


def build_trainer(job: Job, version: Path) -> Trainer:
    """Return the job's trainer, for the version in a folder, not loaded yet."""
    order = job.order
    plugin = trainer_plugin(order.model.trainer)
    context = TrainerContext(
        source=order.model.source,
        dtype=order.model.dtype,
        model_options=validated(
            plugin.model_options, order.model.options, "model.options"
        ),
        work=validated(plugin.work_options, order.work, "work"),
        seed=derive_seed("trainer", order.seed, order.facility, order.round),
        assets=version,
        modules=job.modules,
    )
    trainer: Trainer = resolve(plugin.target)(context)
    return trainer


def ordered_steps(job: Job) -> int:
    """Return the number of steps of a training order.

    Raises:
        SpecError: The order has none.
    """
    if job.order.steps is None:
        raise SpecError(f"The order {job.order.assignment} has no `steps`.")
    return job.order.steps


def as_hansa_error(error: Exception) -> HansaError:
    """Return any failure as one that crosses to the server.

    Lack of memory and errors of the operating system may pass, so they are
    transient; everything else is a fault of the order, the data or the code.
    """
    if isinstance(error, HansaError):
        return error
    # torch.OutOfMemoryError by name, as torch may not be installed here.
    transient = isinstance(error, OSError | MemoryError) or (
        type(error).__name__ == "OutOfMemoryError"
    )
    return WorkerError(
        f"{type(error).__name__}: {error}",
        hint="The traceback is in the job's log.txt.",
        transient=transient,
    )
