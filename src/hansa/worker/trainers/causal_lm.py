"""The trainer `causal-lm`: language models on inputs and outputs that are text.

The loss of an example is the mean negative log likelihood of its answer's tokens
(the prompt is not learned); the loss of a batch, or of a task, is the mean over
examples. So training minimises just what evaluation reports.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hansa.core.errors import SpecError
from hansa.core.rng import derive_seed
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    Report,
    TensorReader,
    TrainerContext,
    needs_plain_sgd,
)
from hansa.worker.engine.base import Engine, Recipe
from hansa.worker.engine.choice import way
from hansa.worker.engine.device import prepare
from hansa.worker.engine.make import make_engine
from hansa.worker.engine.together import agreed, largest, summed
from hansa.worker.llm_options import (
    CausalLMModelOptions,
    CausalLMWorkOptions,
    language_impure,
    rank_misfit,
)
from hansa.worker.measured import attach, over_ranks
from hansa.worker.trainers.collate import (
    Rows,
    check_length,
    check_separate,
    longest_question,
    passes,
    rows,
)
from hansa.worker.trainers.llama import Llama
from hansa.worker.trainers.models import (
    DTYPES,
    LanguageModel,
    first_model,
    version_model,
    write_model,
)
from hansa.worker.trainers.schedule import factor
from hansa.worker.trainers.tokenizer import Encoded

log = logging.getLogger(__name__)

_WINDOW = 8  # micro batches that an evaluation sorts by length together


class CausalLM:
    """A decoder-only language model; see `hansa.worker.base.Trainer`.

    On several ranks an evaluation is of each rank's own examples, as a step is; all
    ranks do the same number of passes, as some back ends talk to each other in each.

    Args:
        context: Source, options, seed, the version's assets, and the ranks.

    Raises:
        SpecError: The source or the dtype is none that this trainer knows,
            `work.lora_rank` does not fit the model's adapters, or `work.sharding` does
            not fit the number of ranks or the memory.
        WorkerError: Model files are missing or damaged.
    """

    def __init__(self, context: TrainerContext) -> None:
        self._options = cast(CausalLMModelOptions, context.model_options)
        self._work = cast(CausalLMWorkOptions, context.work)
        if (why := rank_misfit(self._options, self._work)) is not None:
            raise SpecError(f"work: {why}.")
        self._context, self._team = context, context.team
        self._packing_checked = False
        self._device = prepare(context.seed, context.team)
        if context.assets is None:
            self._model = first_model(context, self._options)
        else:
            self._model = version_model(context, self._options, context.assets)
        check_length(self._model.config, self._work.sequence_length)
        self._precision = self._work.precision or context.dtype
        if self._precision in DTYPES:
            _convert(self._model, DTYPES[self._precision], self._options)
        self._way = way(
            self._model.config,
            self._options,
            self._work,
            self._precision,
            self._team,
            self._device,
            own=isinstance(self._model.module, Llama),
        )
        self._lr_scale = 1.0
        self._truncated, self._meter = 0, context.meter
        attach(self._meter, self._device)
        self._engine = self._make_engine()
        if not self._model.residuals:
            self._fill()
        if self._model.first is not None:
            self._engine.load(self._model.first)
        if self._team.rank:  # all have built the same model; now each draws its own
            torch.manual_seed(derive_seed(context.seed, "rank", self._team.rank))

    def _make_engine(self) -> Engine:
        recipe = Recipe(
            sharding=self._way.sharding,
            precision=self._precision,  # type: ignore[arg-type]
            optimizer=self._work.optimizer,
            weight_decay=self._work.weight_decay,
            clip=self._work.clip,
            activation_checkpointing=self._way.activation_checkpointing,
            cpu_offload=self._way.cpu_offload,
            adapter_rank=self._work.lora_rank,
            may_skip=any("expert" in key for key in self._model.config),
            seed=self._context.seed,
        )
        return make_engine(
            self._model.module,
            self._model.federated(),
            recipe,
            self._team,
            self._device,
        )

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield copies of the federated tensors in float32, sorted by name."""
        yield from self._engine.tensors()

    def load(self, read: TensorReader) -> None:
        """Take the values of all federated tensors from `read`.

        Where the version has residuals of its adapters, they go into the frozen
        weights.

        Raises:
            WorkerError: A tensor is missing or has another shape.
        """
        self._engine.load(read)
        if self._model.residuals:
            self._fill(read)

    def _fill(self, read: TensorReader | None = None) -> None:
        """Set the frozen weights."""
        with agreed(self._team, "Reading the frozen model"):
            self._model.fill(read)

    def correct(self, correction: Correction) -> None:
        """Take up the order's learning rate factor, proximal term, control variate.

        Raises:
            SpecError: There is a control variate, and the optimizer's steps are not
                the sum of its gradients.
        """
        if correction.control is not None and language_impure(self._work):
            raise needs_plain_sgd("work.optimizer: sgd, clip: null")
        self._engine.correct(correction)
        self._lr_scale = correction.lr_scale

    @property
    def plain_rate(self) -> float | None:
        """The next step's learning rate; None unless it is plain SGD."""
        return None if language_impure(self._work) else self._learning_rate()

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        """Do one optimizer step and return the mean training loss over all ranks."""
        of = len(batch) if of is None else of
        engine, losses = self._engine, []
        self._check_packing()
        engine.module.train()
        with self._meter.step():
            with self._meter.data():
                planned = self._passes(batch)
            count = self._most(len(planned))
            for index in range(count):
                last = index == count - 1
                made = self._rows(planned, index)
                engine.begin(last=last)
                each = made.losses(self._scores(made))
                engine.backward(each.sum() / of, last=last)
                losses += each.tolist()
            (total,) = summed([math.fsum(losses)], self._team)
            if math.isfinite(total):  # else the weights stay as good as they were
                norm = engine.step(self._learning_rate())
                if norm == math.inf:
                    log.warning("The loss is %g, but its gradient no number.", total)
                    total = math.nan
        return total / of

    @torch.no_grad()
    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        """Return the mean loss over the examples of each task, tasks sorted.

        The examples are taken a window at a time, as taking one is where a worker
        that is told to stop interrupts; within a window they are sorted by length.
        """
        self._engine.module.eval()
        by_task: dict[str, list[float]] = defaultdict(list)
        waiting = iter(examples)
        while True:
            window = list(islice(waiting, _WINDOW * self._way.micro_batch))
            planned = self._passes(window)
            count = self._most(len(planned))
            if not count:
                break
            for index in range(count):
                made = self._rows(planned, index, count=False)
                losses = made.losses(self._scores(made)).tolist()
                chosen = planned[index][0] if index < len(planned) else []
                for at, loss in zip(chosen, losses, strict=True):
                    by_task[window[at].task].append(loss)
        return {
            task: math.fsum(losses) / len(losses)
            for task, losses in sorted(by_task.items())
        }

    def generate(self, examples: Iterable[Example], tokens: int) -> Sequence[str]:
        """Return the model's greedy answers, in the order of the examples.

        A question may be as long as in training, but leaves room for its answer.

        Raises:
            SpecError: The model is spread over several ranks, or is not made for
                answers of so many tokens.
        """
        if self._team.world > 1:
            raise SpecError(
                f"{self._team.world} ranks can't generate answers together."
            )
        from hansa.worker.generate import answers  # noqa: PLC0415 - only here

        self._engine.module.eval()
        return answers(
            self._model,
            examples,
            tokens=tokens,
            longest=longest_question(
                self._model.config, self._work.sequence_length, tokens
            ),
            rows=self._way.micro_batch,
        )

    def save(self, directory: Path) -> None:
        """Write this rank's part of tensors, optimizer and random state."""
        self._engine.save(directory)

    def restore(self, directory: Path) -> None:
        """Continue exactly where `save` was called.

        Raises:
            WorkerError: The saved state is of another model, or damaged.
        """
        self._engine.restore(directory)

    def take_up(self, directory: Path) -> None:
        """Take the optimizer's moments of an order before; see `Keeping`."""
        self._engine.restore(directory, optimizer_only=True)

    def report(self) -> Report:
        """Return how it trains, and what it has counted."""
        numbers = {
            **self._meter.numbers(),
            "truncated": float(self._truncated),
        }
        words = {**self._engine.words(), "device_name": self._meter.gauge.name}
        return Report(words=words, numbers=over_ranks(numbers, self._team))

    def write_assets(self, folder: Path) -> None:
        """Write config and tokenizer (and what LoRA needs) into `folder`."""
        write_model(self._model, self._options, folder)

    def _check_packing(self) -> None:
        """Make sure, once, that the model keeps packed examples apart."""
        if self._work.packing and not self._packing_checked:
            self._engine.module.eval()
            check_separate(self._scores, self._device, self._work.sequence_length)
            self._packing_checked = True

    def _learning_rate(self) -> float:
        done = self._engine.steps
        warm = min(1.0, (done + 1) / max(1, self._work.warmup_steps))
        share = factor(self._work.schedule, self._context.first + done)
        return self._work.lr * self._lr_scale * warm * share

    def _most(self, count: int) -> int:
        """Return how many passes the rank with most of them has."""
        return int(largest(count, self._team))

    def _passes(
        self, examples: Sequence[Example]
    ) -> list[tuple[list[int], list[Encoded]]]:
        """Return indices and tokens of examples of similar length."""
        encoded = self._model.tokenizer.encode(
            examples, self._work.sequence_length, self._work.too_long
        )
        chosen = passes(encoded, self._way.micro_batch, self._pack_length)
        return [(indices, [encoded[i] for i in indices]) for indices in chosen]

    @property
    def _pack_length(self) -> int | None:
        return self._work.sequence_length if self._work.packing else None

    def _rows(
        self,
        planned: Sequence[tuple[list[int], list[Encoded]]],
        index: int,
        *,
        count: bool = True,
    ) -> Rows:
        """Return what goes into a pass; padding where only others have examples."""
        encoded = planned[index][1] if index < len(planned) else []
        with self._meter.data():
            pad = self._model.tokenizer.eos
            made = rows(encoded, pad, self._device, self._pack_length)
        if count:
            self._truncated += sum(entry.cut for entry in encoded)
            self._meter.count(
                samples=len(encoded),
                tokens=made.tokens,
                padding=made.padding,
                answers=len(made.targets),
            )
        return made

    def _scores(self, made: Rows) -> Tensor:
        # What fsdp has spread is float32 in between, whatever it computes in.
        dtype = torch.bfloat16 if self._precision == "mixed" else None
        return self._model.scores(made, self._engine.module, dtype)


def write_assets(trainer: CausalLM, folder: Path) -> None:
    """Write the assets of a first version; entry point of the plug-in."""
    trainer.write_assets(folder)


def _convert(
    model: LanguageModel, dtype: torch.dtype, options: CausalLMModelOptions
) -> None:
    """Let a model compute in `dtype`; adapters are float32 whatever the model is."""
    for parameter in model.module.parameters():
        is_adapter = options.lora is not None and parameter.requires_grad
        if parameter.is_floating_point() and not is_adapter:
            parameter.data = parameter.data.to(dtype)
