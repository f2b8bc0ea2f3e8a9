"""What one rank has of an order: its data and its trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

from hansa.core.errors import SpecError
from hansa.core.rng import derive_seed
from hansa.mailbox.files import storage_full
from hansa.mailbox.paths import Mailbox
from hansa.store.folder import reader
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    Keeping,
    OwnProgram,
    PlainSteps,
    Report,
    Reporting,
    Task,
    Trainer,
    TrainerContext,
    resolve,
)
from hansa.worker.binding import control_dir
from hansa.worker.data import Batches
from hansa.worker.job import Job, task_plugin, trainer_plugin, validated
from hansa.worker.meter import Meter
from hansa.worker.reading import FolderReader
from hansa.worker.team import SOLO, Team

Pause = Callable[[], None]
"""Called now and then in a long call; raises if it is time to stop."""

Sums = dict[str, tuple[float, int]]
"""By task: sum of the losses, and of how many examples."""


def known() -> None:
    """Verified elsewhere."""


class Work:
    """Data and trainer of an order, on one rank.

    The whole of it where one process works alone; `hansa.worker.team.leader` has the
    same methods for a team.

    Args:
        job: What to do.
        team: Who this is.
    """

    def __init__(self, job: Job, team: Team = SOLO) -> None:
        self.job = job
        self.team = team
        self._mailbox = Mailbox(job.mailbox.parent, job.mailbox.name)
        self._batches: Batches | None = None
        self._test: Sequence[Example] = ()
        self._trainer: Trainer | None = None
        self._meter = Meter()

    @cached_property
    def batch(self) -> int:
        """How many examples a step has over all ranks."""
        return batch_size(self.job)

    @property
    def batches(self) -> Batches:
        """The order's training batches; `read` was called."""
        if self._batches is None:
            raise RuntimeError("the training data was not read")
        return self._batches

    @property
    def trainer(self) -> Trainer:
        """The trainer; `load` was called."""
        if self._trainer is None:
            raise RuntimeError("no version was loaded")
        return self._trainer

    @property
    def plain_rate(self) -> float | None:
        """The next step's learning rate, if it is plain SGD (`PlainSteps`)."""
        trainer = self.trainer
        return trainer.plain_rate if isinstance(trainer, PlainSteps) else None

    def check(self) -> None:
        """Raise if the work can't go on."""

    def read(self, *, train: bool, test: bool) -> bool:
        """Read the data; return whether there are test examples.

        Raises:
            SpecError: The order's `work` or `steps`, or the groups, make no sense.
            WorkerError: There is no training example.
        """
        task = build_task(self.job)
        if train:
            self._batches = batches_of(self.job, task)
        if test:
            self._test = task.load("test", self.job.task.test_splits)
        return bool(self._test)

    def load(self, version: Path, verified: Callable[[], None] = known) -> None:
        """Make a trainer at the version in a folder, with the order's corrections.

        Args:
            version: The folder.
            verified: Called when the trainer is built and nothing is read yet; raises
                if the files are not what they should be.
        """
        self._trainer = None  # two of them may not fit the memory
        self._meter = Meter(self.job.order.measure)
        trainer = build_trainer(self.job, version, self.team, self._meter)
        verified()
        with reader(version) as tensors:
            trainer.load(FolderReader(tensors))
        self._correct(trainer)
        self._trainer = trainer

    def restore(self, directory: Path, *, optimizer_only: bool = False) -> None:
        """Take up a checkpoint; raises WorkerError if it can't be used.

        Args:
            directory: Its files.
            optimizer_only: It is of an order before this one.
        """
        if not optimizer_only:
            self.trainer.restore(directory)
        elif isinstance(self.trainer, Keeping):
            self.trainer.take_up(directory)

    def step(self, index: int) -> float:
        """Do a step of the order, 0 for the first; return its loss over all ranks."""
        with self._meter.data():
            part, of = self.batches.part(index, self.team.rank, self.team.world)
        if self.team.world == 1:
            return self.trainer.step(part)
        return self.trainer.step(part, of)

    def evaluate(self, pause: Pause) -> Mapping[str, float]:
        """Return the mean test loss by task."""
        return self.trainer.evaluate(_with_pauses(self._test, pause))

    def scores(self, pause: Pause) -> Mapping[str, float]:
        """Return what generated answers score, where the order asks for some."""
        if self.job.order.generate is None:
            return {}
        from hansa.worker.scores import scored  # noqa: PLC0415 - only here

        return scored(self.job, self.trainer, self._test, pause)

    def share(self, first: int, count: int) -> Sums:
        """Evaluate this rank's share of some test examples."""
        rank, world = self.team.rank, self.team.world
        mine = [self._test[at] for at in range(first + rank, first + count, world)]
        return _sums(self.trainer, mine)

    def suspects(self, index: int) -> list[list[str]]:
        """Return, by rank, which examples of a step have a loss that is not finite.

        One process knows which they are; of a team it is the whole part of a rank.
        """
        return [self.own_suspects(index)]

    def own_suspects(self, index: int) -> list[str]:
        """Return this rank's examples, by place, if a loss of them is not finite.

        Of a program of one's own nothing is known: it does not evaluate examples.
        """
        if self.job.program:
            return []
        part, _ = self.batches.part(index, self.team.rank, self.team.world)
        one_by_one = [[example] for example in part]
        chosen = one_by_one if self.team.world == 1 else [part]
        odd = [some for some in chosen if _odd(_sums(self.trainer, some))]
        return [example.place for some in odd for example in some]

    def save(self, directory: Path) -> None:
        """Write the trainer's state into `directory`.

        Raises:
            StorageFull: There is no space.
        """
        with self._meter.aside(), storage_full(directory.parent):
            self.trainer.save(directory)

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors as `Trainer.tensors` does."""
        yield from self.trainer.tensors()

    def report(self) -> Report:
        """Return what the trainer tells of its work."""
        trainer = self.trainer
        return trainer.report() if isinstance(trainer, Reporting) else Report()

    def drop(self) -> None:
        """Give back the memory of trainer and data."""
        self._trainer, self._batches, self._test = None, None, ()

    def _correct(self, trainer: Trainer) -> None:
        order = self.job.order
        control = control_dir(order, self._mailbox)
        with reader(control) if control else nullcontext() as state:
            trainer.correct(
                Correction(
                    lr_scale=order.lr_scale,
                    proximal=order.proximal,
                    control=FolderReader(state) if state else None,
                )
            )


def build_task(job: Job) -> Task:
    """Return the task of a job; raises PluginError or SpecError."""
    plugin = task_plugin(job.task.name)
    options = validated(plugin.options, job.task.options, "task.options")
    job.task.cache.mkdir(parents=True, exist_ok=True)
    task: Task = resolve(plugin.target)(job.task.source, job.task.cache, options)
    return task


def batches_of(job: Job, task: Task) -> Batches:
    """Return the order's batches of the facility's training examples.

    Raises:
        SpecError: The order's `work` or `steps`, or the groups, make no sense.
        WorkerError: There is no example.
    """
    order, batch = job.order, batch_size(job)
    return Batches(
        task.load("train", job.task.splits),
        batch,
        seed=order.seed,
        facility=order.facility,
        seen=steps_before(job) * batch if order.seen is None else order.seen,
    )


def build_trainer(
    job: Job, version: Path, team: Team = SOLO, meter: Meter | None = None
) -> Trainer:
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
        team=team,
        first=steps_before(job),
        meter=meter or Meter(),
        own=_own_program(job) if job.program else None,
    )
    trainer: Trainer = resolve(plugin.target)(context)
    return trainer


def _own_program(job: Job) -> OwnProgram:
    order = job.order
    return OwnProgram(
        command=job.program,
        kind=order.kind,
        steps=order.steps or 0,
        evaluates=order.evaluate or order.kind == "evaluate",
        data=job.task.source,
        groups=job.task.splits,
        job_dir=job.job_dir,
        state_dir=job.state_dir,
    )


def batch_size(job: Job) -> int:
    """Return how many examples a step has over all ranks."""
    work = trainer_plugin(job.order.model.trainer).work_options
    return int(validated(work, job.order.work, "work").model_dump()["batch"])


def steps_before(job: Job) -> int:
    """Return how many steps the facility did in earlier rounds."""
    order = job.order
    if order.first is not None:
        return order.first
    return (max(order.round, 1) - 1) * (order.steps or 0)


def ordered_steps(job: Job) -> int:
    """Return the number of steps of a training order.

    Raises:
        SpecError: The order has none.
    """
    if job.order.steps is None:
        raise SpecError(f"The order {job.order.assignment} has no `steps`.")
    return job.order.steps


def means(shares: Sequence[Sums]) -> dict[str, float]:
    """Return the mean loss by task, tasks sorted, over what several ranks summed up."""
    tasks = sorted({task for share in shares for task in share})
    found = {}
    for task in tasks:
        parts = [share[task] for share in shares if task in share]
        total = math.fsum(loss for loss, _ in parts)
        found[task] = total / sum(count for _, count in parts)
    return found


def _sums(trainer: Trainer, examples: Sequence[Example]) -> Sums:
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.task] = counts.get(example.task, 0) + 1
    losses = trainer.evaluate(examples)
    return {task: (losses[task] * count, count) for task, count in counts.items()}


def _odd(sums: Sums) -> bool:
    return not all(math.isfinite(loss) for loss, _ in sums.values())


def _with_pauses(examples: Sequence[Example], pause: Pause) -> Iterator[Example]:
    for example in examples:
        pause()
        yield example
