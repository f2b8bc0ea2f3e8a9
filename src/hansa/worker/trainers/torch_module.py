"""Any torch model: a function of the user's that the facility allows by name.

The function is called as ``function(seed, options)`` and returns `TorchParts`::

    def digits_net(seed: int, options: dict) -> TorchParts:
        torch.manual_seed(seed)
        return TorchParts(model=Net(**options), loss=mean_cross_entropy)

All parameters and all buffers of floating point are federated; other buffers (such
as counters) stay with the job. On several ranks each computes the loss of its own part
of a batch, and the buffers are those of rank 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hansa.core.errors import PolicyError, SpecError, WorkerError
from hansa.core.rng import derive_seed
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    Report,
    TensorReader,
    TrainerContext,
    needs_plain_sgd,
    resolve,
)
from hansa.worker.engine.base import Recipe
from hansa.worker.engine.device import rank_device
from hansa.worker.engine.make import make_engine
from hansa.worker.engine.together import largest, summed
from hansa.worker.measured import attach, over_ranks
from hansa.worker.options import TorchModuleModelOptions, TorchModuleWorkOptions

Loss = Callable[[nn.Module, Sequence[Example]], Tensor]


@dataclass(frozen=True, slots=True)
class TorchParts:
    """What a user's function gives.

    Attributes:
        model: The model; initialised from the seed only.
        loss: ``loss(model, examples)`` is the mean loss of the examples, a scalar.
    """

    model: nn.Module
    loss: Loss


class WithLoss(nn.Module):
    """A user's model with its loss, so that a back end sees every use of the model.

    Args:
        parts: What the user's function gave.
    """

    def __init__(self, parts: TorchParts) -> None:
        super().__init__()
        self.model = parts.model
        self._loss = parts.loss

    def forward(self, examples: Sequence[Example]) -> Tensor:
        """Return the mean loss of examples."""
        return self._loss(self.model, examples)


class TorchModule:
    """The `Trainer` of a user's model; `model.source` is ``module:function``.

    Raises:
        PolicyError: `site.yaml` does not allow the function.
        SpecError: It can't be imported or does not return `TorchParts`, or `work` does
            not fit the number of ranks.
    """

    def __init__(self, context: TrainerContext) -> None:
        if not isinstance(context.model_options, TorchModuleModelOptions):
            raise TypeError("model_options must be TorchModuleModelOptions")
        if not isinstance(context.work, TorchModuleWorkOptions):
            raise TypeError("work must be TorchModuleWorkOptions")
        self._work, self._team = context.work, context.team
        if self._work.batch < self._team.world:
            raise SpecError(
                f"work.batch is {self._work.batch}, but {self._team.world} ranks share "
                "it; some of them would have nothing to do.",
                hint="Raise work.batch, or ask for fewer ranks.",
            )
        torch.manual_seed(context.seed)
        parts = _build(context, context.model_options.arguments)
        self._device = rank_device(context.team)
        self._lr_scale = 1.0
        self._meter = context.meter
        attach(self._meter, self._device)
        self._engine = make_engine(
            WithLoss(parts),
            _federated(parts.model),
            _recipe(self._work, context),
            self._team,
            self._device,
        )
        self._spare: list[Example] = []
        if self._team.rank:  # all have built the same model; now each draws its own
            torch.manual_seed(derive_seed(context.seed, "rank", self._team.rank))

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield parameters and floating point buffers by name, sorted."""
        yield from self._engine.tensors()

    def load(self, read: TensorReader) -> None:
        """Take the values of all federated tensors from `read`, in any float dtype.

        Raises:
            WorkerError: A tensor has another shape than the model's.
        """
        self._engine.load(read)

    def correct(self, correction: Correction) -> None:
        """Take up the order's factor on the learning rate and terms of the gradient.

        Raises:
            SpecError: There is a control variate, and `work` chooses another optimizer
                than SGD without momentum.
            WorkerError: The control variate has another shape than the model.
        """
        if correction.control is not None and not self._is_plain:
            raise needs_plain_sgd("work.optimizer: sgd, momentum: 0")
        self._engine.correct(correction)
        self._lr_scale = correction.lr_scale

    @property
    def plain_rate(self) -> float | None:
        """Learning rate of every step; None for AdamW and with momentum."""
        return self._work.lr * self._lr_scale if self._is_plain else None

    @property
    def _is_plain(self) -> bool:
        return self._work.optimizer == "sgd" and self._work.momentum == 0

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        """Do one optimizer step and return the mean loss before it, over all ranks."""
        share = len(batch) / (len(batch) if of is None else of)
        self._engine.module.train()
        with self._meter.step():
            self._engine.begin(last=True)
            loss = self._engine.module(self._some(batch)) * share
            self._engine.backward(loss, last=True)
            (total,) = summed([float(loss.detach())], self._team)
            if math.isfinite(total):  # else the weights stay as good as they were
                self._engine.step(self._work.lr * self._lr_scale)
            self._meter.count(samples=len(batch))
        return total

    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        """Return the mean loss by task, in evaluation mode and without gradients."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        self._engine.module.eval()
        chunks = _chunks(examples, self._work.batch)
        with torch.no_grad():
            while True:
                chunk = next(chunks, [])
                if not largest(len(chunk), self._team):
                    break
                loss = float(self._engine.module(self._some(chunk)))
                if chunk:
                    task, size = chunk[0].task, len(chunk)
                    sums[task] = sums.get(task, 0.0) + loss * size
                    counts[task] = counts.get(task, 0) + size
        return {task: sums[task] / counts[task] for task in sorted(sums)}

    def save(self, directory: Path) -> None:
        """Write this rank's part of model, optimizer and generators."""
        self._engine.save(directory)

    def restore(self, directory: Path) -> None:
        """Continue exactly where `save` was called.

        Raises:
            WorkerError: The saved state is of another model, or damaged.
        """
        self._engine.restore(directory)

    def report(self) -> Report:
        """Return how it trains, and what it has counted."""
        words = {**self._engine.words(), "device_name": self._meter.gauge.name}
        numbers = over_ranks(self._meter.numbers(), self._team)
        return Report(words=words, numbers=numbers)

    def _some(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return examples, or an old one where this rank has none and others have.

        A loss of nothing is not defined, and some back ends need each rank in each
        pass. What comes of it counts for nothing.
        """
        self._spare = [*examples[:1]] or self._spare
        if not self._spare:
            raise WorkerError(
                "This rank has no example, though others have.",
                hint="Ask for fewer ranks, or for more test examples.",
            )
        return examples or self._spare


def _federated(model: nn.Module) -> dict[str, Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point()}


def _recipe(work: TorchModuleWorkOptions, context: TrainerContext) -> Recipe:
    alone = "none" if context.team.world == 1 else "ddp"
    return Recipe(
        sharding=alone if work.sharding == "auto" else work.sharding,
        precision="float32",
        optimizer=work.optimizer,
        weight_decay=work.weight_decay,
        momentum=work.momentum,
        fused=False,
        may_skip=True,
        seed=context.seed,
    )


def _chunks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Yield lists of at most `size` examples of one task."""
    waiting: dict[str, list[Example]] = {}
    for example in examples:
        chunk = waiting.setdefault(example.task, [])
        chunk.append(example)
        if len(chunk) == size:
            yield waiting.pop(example.task)
    yield from waiting.values()


def _build(context: TrainerContext, arguments: Mapping[str, object]) -> TorchParts:
    if context.source not in context.modules:
        raise PolicyError(
            f"This facility does not allow the model {context.source!r}.",
            hint=f"Its owner can add it to `modules` in site.yaml; allowed now: "
            f"{', '.join(context.modules) or 'none'}.",
        )
    try:
        function = resolve(context.source)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(
            f"The model {context.source!r} can't be imported: {error}.",
            hint="`model.source` is module:function, installed in the facility's "
            "environment.",
        ) from error
    parts = function(context.seed, dict(arguments))
    if not isinstance(parts, TorchParts):
        raise SpecError(
            f"{context.source!r} returned {type(parts).__name__}, not TorchParts.",
            hint="Return hansa.worker.trainers.torch_module.TorchParts(model, loss).",
        )
    return parts
