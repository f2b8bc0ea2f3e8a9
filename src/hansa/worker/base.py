"""What a trainer and a task are to the worker.

A **task** turns a facility's data into examples; a **trainer** turns examples into
model steps. Both are found by name through entry points (`hansa.tasks`,
`hansa.trainers`) that hold the light objects `TaskPlugin` and `TrainerPlugin`, so the
server can check options without importing torch; the heavy class named by `target`
is imported inside the job only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from hansa.core.errors import SpecError
from hansa.worker.meter import Meter
from hansa.worker.team import SOLO, Team

Array = NDArray[np.generic]
TensorReader = Callable[[str], Array]
"""Returns the tensor of a name, in the dtype it is stored in."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample: the sub-task it belongs to, what goes in, what should come out.

    `place` tells a person which it is, as "train.jsonl:17"; it does not count when
    examples are compared.
    """

    task: str
    input: Any
    output: Any
    place: str = field(default="", compare=False)


class Task(Protocol):
    """Data of one kind, divided into groups and splits.

    Built as ``Task(source, cache, options)``: `source` is the folder or file that the
    facility's site.yaml names (None: built in), `cache` a writable folder, `options`
    the plug-in's validated options.
    """

    def groups(self) -> Sequence[str]:
        """Return the names of the groups that the data falls into."""
        ...

    def load(self, split: str, groups: Sequence[str] | None) -> Sequence[Example]:
        """Return all examples of a split ("train", "test"), in a fixed order.

        Args:
            split: Name of the split.
            groups: Only these groups; None means all.

        Raises:
            SpecError: There is no such group, or it has no example.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnProgram:
    """What the trainer `program` starts, and what that is told of the order.

    Attributes:
        command: Its command line, by site.yaml.
        kind: "train" or "evaluate".
        steps: Steps that are ordered.
        evaluates: Whether test losses are wanted.
        data: The facility's data of the task.
        groups: Those that the order names; None: all.
        job_dir: The job's directory in the mailbox.
        state_dir: The job's directory that only the facility writes.
    """

    command: tuple[str, ...]
    kind: str
    steps: int
    evaluates: bool
    data: Path | None
    groups: tuple[str, ...] | None
    job_dir: Path
    state_dir: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerContext:
    """What a trainer is built from.

    Attributes:
        source: A builtin name, or a path on this machine: `model.source` of the
            federation, as the facility's `models` translates it.
        dtype: dtype that the model is published in ("float32", "bfloat16").
        model_options: `model.options`, validated by the plug-in's `model_options`.
        work: `work` of the facility, validated by the plug-in's `work_options`.
        seed: Seed for everything that this order draws.
        assets: Folder with the version's assets (config, tokenizer); None when the
            first version is being made.
        modules: The `module:function` names that site.yaml allows.
        corpus: Gives training examples, for trainers that build a tokenizer while
            the first version is made.
        team: The ranks that train together; each of them has a trainer of its own.
        first: Steps that the facility has done in earlier rounds, for what goes on
            from round to round, as a schedule does.
        meter: Counts and measures the trainer's steps, on this rank.
        own: For the trainer `program`: what it starts.
    """

    source: str
    dtype: str
    model_options: BaseModel
    work: BaseModel
    seed: int
    assets: Path | None = None
    modules: tuple[str, ...] = ()
    corpus: Callable[[], Sequence[Example]] = field(default=tuple)
    team: Team = SOLO
    first: int = 0
    meter: Meter = field(default_factory=Meter)
    own: OwnProgram | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """What an order asks of the local steps beside the loss.

    Attributes:
        lr_scale: Factor on the learning rate of `work`.
        proximal: mu: ``mu * (w - w_base)`` is added to the gradient (FedProx, Li et
            al., arXiv 1812.06127).
        control: Gives tensors (fp32) that are added to the gradient of the same name
            (SCAFFOLD, Karimireddy et al., arXiv 1910.06378); None: none.
    """

    lr_scale: float = 1.0
    proximal: float = 0.0
    control: TensorReader | None = None


class Trainer(Protocol):
    """A model with its optimizer; built as ``Trainer(context)``.

    When `context.assets` is None the trainer initialises a fresh (or pretrained)
    model; otherwise `load` follows and gives it a version's tensors.

    Where the plug-in says `parallel`, every rank of the job has a trainer, and each of
    these methods is called on all ranks, in the same order; only rank 0 uses what they
    return. They may therefore use collectives.
    """

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors by name, sorted, one at a time.

        All are of floating dtype, best of the one that they are trained in; they are
        read before the next call of the trainer, so they may be views.
        """
        ...

    def load(self, read: TensorReader) -> None:
        """Take the values of all federated tensors from `read`.

        Raises:
            WorkerError: A tensor is missing or has another shape.
        """
        ...

    def correct(self, correction: Correction) -> None:
        """Take up what the order asks of every step; called after `load`.

        The values that were loaded are the base of the proximal term, also when
        `restore` follows. Every optimizer can take the factor and the proximal term;
        a control variate needs plain SGD, as it corrects steps of ``lr * gradient``.

        Raises:
            SpecError: The optimizer that `work` chooses can't do that; nothing was
                trained.
            WorkerError: The control variate is of another model.
        """
        ...

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        """Do one optimizer step and return the mean training loss.

        If that is not finite, weights and optimizer stay as they were: the job ends,
        and keeps them. It is NaN, too, if the norm of the gradient is no number.

        Args:
            batch: This rank's part of the step's examples; it may be empty.
            of: How many examples the step has over all ranks; None: those of `batch`.
                Loss and gradient are the mean over all of them.
        """
        ...

    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        """Return the mean test loss by task.

        Consume the examples as you go: the iterator gives the heartbeat, and it
        raises when the job has to stop.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write all that `restore` needs (model, optimizer, rng) into `directory`."""
        ...

    def restore(self, directory: Path) -> None:
        """Continue exactly where `save` was called; `load` was called before.

        Raises:
            WorkerError: The state does not fit; the job then begins anew.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a trainer tells of its work, beside the loss.

    Attributes:
        words: How it trains, as ``{"sharding": "fsdp", "wrapper": "FSDPLlama",
            "device": "cuda", "precision": "mixed"}``; the same in the whole order.
        numbers: What it has counted and measured since it was built, over all ranks:
            ``tokens``, ``padding`` (tokens that only filled up), ``truncated``
            (examples that were cut), ``data_s`` (mean of the ranks),
            ``memory_peak_bytes`` (of the fullest rank), and what
            `hansa.worker.meter.Meter.numbers` has of an order that is measured.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Reporting(Protocol):
    """A trainer that tells how it works; asked on all ranks, like its methods."""

    def report(self) -> Report:
        """Return what there is to tell up to now."""
        ...


@runtime_checkable
class PlainSteps(Protocol):
    """A trainer that may do plain SGD, whose steps sum up to its gradients.

    The job then reports ``lr_sum``, the sum of the learning rates of all its steps: the
    update divided by it is minus the mean gradient, which SCAFFOLD needs.
    """

    @property
    def plain_rate(self) -> float | None:
        """The next step's learning rate, times `Correction.lr_scale`.

        None: `work` chooses another optimizer than SGD without momentum.
        """
        ...


@runtime_checkable
class Keeping(Protocol):
    """A trainer whose optimizer can go on where that of an order before has ended."""

    def take_up(self, directory: Path) -> None:
        """Take the optimizer's state, alone, of what `Trainer.save` wrote.

        Raises:
            WorkerError: It is of another model or optimizer, or damaged.
        """
        ...


def needs_plain_sgd(remedy: str) -> SpecError:
    """Return the error for a control variate that an optimizer can't take.

    Args:
        remedy: What to set in `work`, as "work.momentum: 0".
    """
    return SpecError(
        "The strategy scaffold needs plain SGD; `work` of this facility chooses "
        "another optimizer.",
        hint=f"Set {remedy}, or choose another strategy.",
    )


@runtime_checkable
class Generating(Protocol):
    """A trainer whose model answers in text."""

    def generate(self, examples: Iterable[Example], tokens: int) -> Sequence[str]:
        """Return the model's greedy answers to the inputs of examples, in their order.

        Args:
            examples: Consume them as you go, as `Trainer.evaluate` does.
            tokens: Most tokens of an answer.

        Raises:
            SpecError: The model can't as it is spread over the ranks.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerPlugin:
    """Entry point object of a trainer.

    Attributes:
        model_options: pydantic model of the federation's `model.options`.
        work_options: pydantic model of a facility's `work` (without `steps`, which
            every trainer has); must have a field `batch`, samples per step.
        target: ``module:Class`` of the trainer, imported in the job.
        assets: ``module:function`` called as ``function(trainer, folder)`` to write
            the assets of the first version; None when there are none.
        first: ``module:Class`` that makes the first version in place of `target`, so
            that the server need not hold a model to train it: built in the same way, it
            only has `tensors`. None: `target` does.
        misfit: Called with the options of the model and of a facility's work; says why
            they can't go together, None if they can.
        impure: Called with the options of a facility's work; says what to set for plain
            SGD, which control variates need, None if that is what it does. Without it
            nobody knows before the job does (`PlainSteps`).
        parallel: Whether all ranks of a job train together; else rank 0 trains alone.
        generates: Whether it is `Generating`.
    """

    model_options: type[BaseModel]
    work_options: type[BaseModel]
    target: str
    assets: str | None = None
    first: str | None = None
    misfit: Callable[[Any, Any], str | None] | None = None
    impure: Callable[[Any], str | None] | None = None
    parallel: bool = False
    generates: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPlugin:
    """Entry point object of a task.

    Attributes:
        options: pydantic model of its options.
        target: ``module:Class`` that loads the data, imported in the job.
        scores: ``module:function`` called as ``function(examples, answers)``; returns
            what generated answers score, by task and name. None: exact matches.
    """

    options: type[BaseModel]
    target: str
    scores: str | None = None


def resolve(target: str) -> Any:
    """Import ``module:attribute`` and return the attribute.

    Raises:
        ImportError: The module can't be imported.
        AttributeError: The module has no such attribute.
    """
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
