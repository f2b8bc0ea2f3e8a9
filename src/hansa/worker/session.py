"""The life of one order: bind, verify, train, evaluate, deliver.

::

    starting -> waiting -> training -> evaluating -> saving -> done
    any of them -> failed, with the error as JSON, or cancelled
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import HansaError, WorkerError
from hansa.mailbox.paths import JobDir, Mailbox
from hansa.mailbox.state import JobNotes
from hansa.worker import checkpoint, delivery, kept
from hansa.worker.binding import Binding, bind, control_dir
from hansa.worker.checkpoint import Progress
from hansa.worker.delivery import Delivery, Result, Timings
from hansa.worker.job import Job
from hansa.worker.loading import (
    Work,
    build_task,
    build_trainer,
    ordered_steps,
)
from hansa.worker.saver import Saver
from hansa.worker.signals import Interrupted, Stop
from hansa.worker.status import Status
from hansa.worker.team.crew import Crew
from hansa.worker.team.leader import work_of
from hansa.worker.team.watch import no_loss
from hansa.worker.waiting import Clock, GivenUp, Leave, there
from hansa.worker.walltime import Walltime

__all__ = ["Session", "as_hansa_error", "build_task", "build_trainer"]

log = logging.getLogger(__name__)


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
        crew: The ranks of the launch, whose first one this is; None: there is no other.
    """

    job: Job
    stop: Stop
    started: float
    walltime: Walltime = field(default_factory=Walltime)
    hosted: bool = False
    clock: Clock = field(default_factory=Clock)
    save_s: float = 0.0
    crew: Crew | None = None
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
        if self.crew is not None:
            self.crew.watch.on_loss = self.status.fail
        try:
            self._leave.check()
            self._work()
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
        finally:
            if self.crew is not None:
                self.crew.watch.on_loss = no_loss

    def _work(self) -> None:
        work = work_of(self.job, self.crew)
        try:
            if self.job.order.kind == "evaluate":
                self._evaluate_version(work)
            else:
                self._train(work)
        finally:
            work.drop()

    def _done_before(self) -> None:
        """Finish what a process that was killed after its delivery has left."""
        log.info("The update of %s is there already.", self.job.order.assignment)
        self._remove_checkpoints()
        if self.files.status.exists():
            self.status.enter("done")

    def _remove_checkpoints(self) -> None:
        checkpoint.remove(self.mailbox, self.job.order.assignment, self.job.number)

    def _train(self, work: Work) -> None:
        order = self.job.order
        ordered_steps(self.job)
        has_test = work.read(train=True, test=order.evaluate)
        self._hold(work)
        binding = bind(self.job, self.mailbox)
        log.info("%s trains from version %d.", order.assignment, binding.version)
        progress = self._load(work, binding)
        self._has_started()
        self.status.enter("training", base=binding.version)
        progress = self._steps(work, progress)
        if kept.is_asked(self.job):
            kept.keep(self.mailbox, self.job, progress, work)
        with Delivery(self.mailbox, order, progress) as update:
            update.send(work.tensors())
            losses = self._losses(work) if has_test and not self.stop.reason else {}
            report = work.report()
            self.status.tell(report)
            self._leave.check()
            self.status.enter("saving")
            self.timings.train_s = progress.train_s
            examples = work.batches.examples
            update.finish(Result(progress, losses, self.timings, examples, report))
        log.info("Delivered %d of %s steps.", progress.step, order.steps)
        self._remove_checkpoints()

    def _hold(self, work: Work) -> None:
        """Wait for the word to begin; not again in a job that has begun before."""
        if not self.job.hold_s or self.files.bound.exists():
            return
        word = JobNotes(self.job.state_dir).begin
        began = self.clock.now()
        self.status.enter("waiting")
        while not there(word) and self.clock.now() - began < self.job.hold_s:
            work.check()
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

    def _load(self, work: Work, binding: Binding) -> Progress:
        """Load the version, or the checkpoint if it can be read."""
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as beside:
            # Beside the building: imports alone take as long as hashing gigabytes.
            verified = beside.submit(self._verify, binding)
            work.load(binding.directory, verified.result)
        progress = binding.progress
        state = binding.checkpoint or kept.newest(self.mailbox, self.job)
        if state is not None:
            try:
                work.restore(state, optimizer_only=binding.checkpoint is None)
            except WorkerError as error:
                work.check()
                log.warning(
                    "Starting again from version %d: %s", binding.version, error
                )
                work.load(binding.directory)
                progress = binding.anew()
        self.status.tell(work.report())
        return progress

    def _verify(self, binding: Binding) -> None:
        delivery.verify_version(binding.directory)
        control = control_dir(self.job.order, self.mailbox)
        if control is not None:  # a state's manifest has the form of a version's
            delivery.verify_version(control)

    def _steps(self, work: Work, progress: Progress) -> Progress:
        steps = ordered_steps(self.job)
        with Saver(self.files.checkpoint, self.job.checkpoint_s) as saver:
            while progress.step < steps and self.stop.reason is None:
                progress = self._step(work, progress, saver)
                if progress.step < steps and saver.due():
                    self._save(work, progress, saver)
            if progress.step < steps:
                log.warning("Stopping at step %d: %s.", progress.step, self.stop.reason)
                if progress.step == 0:
                    raise WorkerError(
                        "The job had to stop before its first step: "
                        f"{self.stop.reason}.",
                        hint="Ask for a longer walltime if this happens again.",
                        transient=True,
                    )
                self._save(work, progress, saver)
        self.timings.write_s += saver.stalled_s
        self.save_s = max(self.save_s, saver.longest_s)
        return progress

    def _step(self, work: Work, progress: Progress, saver: Saver) -> Progress:
        began = time.monotonic()
        rate = work.plain_rate
        loss = work.step(progress.step)
        if not math.isfinite(loss):
            raise self._diverged(work, progress, saver, loss)
        seconds = time.monotonic() - began
        progress = progress.after(loss, work.batch, seconds, rate)
        speed = progress.samples / max(progress.train_s, 1e-9)
        self.status.beat(progress.step, loss, speed)
        self._leave.check()
        return progress

    def _save(self, work: Work, progress: Progress, saver: Saver) -> None:
        saver.save(progress, work)
        self.save_s = max(self.save_s, saver.longest_s)
        if self.walltime.ends is not None:
            self.stop.deadline = self.walltime.deadline(self.save_s)

    def _diverged(
        self, work: Work, progress: Progress, saver: Saver, loss: float
    ) -> WorkerError:
        """Return what there is to say of a loss that is no number; keep what is good.

        A trainer does not move its weights by such a loss, so they are those that the
        step began with; but these may be no numbers either, by the step before.
        """
        step, finite = progress.step, True
        for _, value in work.tensors():  # to the end: it is all ranks that do it
            finite = finite and bool(np.isfinite(value).all())
        blamed = _whose(work.suspects(step)) if finite else ""
        saver.wait()
        before = self.files.checkpoint / f"{step:08d}"
        if finite and step and not before.exists():
            saver.save(progress, work)
            saver.wait()
        if not finite:
            shutil.rmtree(before, ignore_errors=True)
        good = checkpoint.newest(self.files.checkpoint)
        state = f"in {good}" if good else "the version that it began from"
        return WorkerError(
            f"The training loss became {loss} at step {step + 1} of "
            f"{self.job.order.steps}{blamed}. Its examples are "
            f"{_few([one.place for one in work.batches[step]])}. The last good state "
            f"is {state}.",
            hint="Lower the learning rate (`work.lr`) of this facility, or look at "
            "these examples.",
        )

    def _losses(self, work: Work) -> Mapping[str, float]:
        """Return the test loss by task; nothing if the job has to stop meanwhile."""
        self.status.enter("evaluating")
        began = time.monotonic()
        try:
            return work.evaluate(self._pause)
        except Interrupted as why:
            log.warning("The evaluation is left out: %s.", why)
            return {}
        finally:
            self.timings.eval_s = time.monotonic() - began

    def _scores(self, work: Work, version: int) -> Mapping[str, float]:
        """Return what generated answers score; an evaluation is whole or none."""
        try:
            return work.scores(self._pause)
        except Interrupted as why:
            raise WorkerError(
                f"The answers of version {version} were not finished: {why}.",
                transient=True,
            ) from why

    def _pause(self) -> None:
        """Give a heartbeat; raise when it is time to stop."""
        self.stop.check()
        self._leave.check()
        self.status.beat()

    def _evaluate_version(self, work: Work) -> None:
        has_test = work.read(train=False, test=True)
        binding = bind(self.job, self.mailbox)
        self._load(work, binding)
        self._has_started()
        self.status.enter("evaluating", base=binding.version)
        losses = self._losses(work) if has_test else {}
        if not losses:
            raise WorkerError(
                f"The evaluation of version {binding.version} was stopped: "
                f"{self.stop.reason or 'there is no test example'}.",
                transient=self.stop.reason is not None,
            )
        result = Result(
            binding.progress,
            losses,
            self.timings,
            scores=self._scores(work, binding.version),
            report=work.report(),
        )
        self.status.enter("saving")
        delivery.deliver_evaluation(self.mailbox, self.job.order, result)


def _whose(suspects: list[list[str]]) -> str:
    """Say which examples of a step it was, or which rank's part of them."""
    parts = [(rank, part) for rank, part in enumerate(suspects) if part]
    if len(suspects) == 1:
        return "".join(f", by the examples {_few(part)}" for _, part in parts)
    return "".join(f", in rank {rank}'s part ({_few(part)})" for rank, part in parts)


def _few(names: list[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


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
