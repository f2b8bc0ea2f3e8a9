"""A federation in this process: real strategy, core, store and trainer; no jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hansa.coordinator.core import Coordinator
from hansa.coordinator.plan import Plan, Stop
from hansa.core import plugins
from hansa.core.commands import Aggregate, Assign, Command, Evaluate, WorkOrder
from hansa.core.events import (
    EvaluationReported,
    Event,
    RunStarted,
    UpdateArrived,
    VersionPublished,
)
from hansa.store.admission import verify_update
from hansa.store.folder import reader
from hansa.store.update import Measured, write_update
from hansa.store.versions import Store
from hansa.strategy.base import StrategyContext
from hansa.worker.base import Correction, Example, TrainerContext
from hansa.worker.data import Batches
from hansa.worker.options import (
    DigitsOptions,
    SoftmaxModelOptions,
    SoftmaxWorkOptions,
)
from hansa.worker.tasks.digits import Digits
from hansa.worker.trainers.softmax import Softmax

Model = dict[str, np.ndarray]


def digits(parts: int, alpha: float, seed: int) -> tuple[dict[str, Any], list[Example]]:
    """Return the training examples of some facilities, and the test split."""
    task = Digits(None, Path(), DigitsOptions(parts=parts, alpha=alpha, seed=seed))
    shares = {
        f"town-{number}": list(task.load("train", [group]))
        for number, group in enumerate(task.groups())
    }
    return shares, list(task.load("test", None))


@dataclass
class InProcess:
    """Facilities that work one after the other, each with a softmax regression.

    An order binds the newest version when its turn comes, and a version is made as
    soon as it is asked for: nothing is ever stale.

    Attributes:
        root: An empty folder.
        data: Training examples by facility.
        work: Options of the trainer, by facility or for all.
        steps: Local steps of an order that names none.
    """

    root: Path
    data: Mapping[str, Sequence[Example]]
    strategy: str = "fedavg"
    options: dict[str, Any] = field(default_factory=dict)
    work: dict[str, Any] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    steps: int = 1
    rounds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self.root / "run", "float32")
        self._orders: deque[Assign] = deque()
        draft = self.root / "draft"
        draft.mkdir(parents=True)
        save_file(
            dict(
                self._trainer("", WorkOrder(assignment="", kind="", round=0)).tensors()
            ),
            draft / "model.safetensors",
        )
        self.store.import_initial(draft)

    @cached_property
    def core(self) -> Coordinator:
        names = tuple(self.data)
        context = StrategyContext(
            facilities=names, steps=dict.fromkeys(names, self.steps)
        )
        kind = plugins.find(plugins.STRATEGIES, self.strategy)
        stop = Stop(rounds=self.rounds)
        plan = Plan(facilities=names, stop=stop, evaluators=names)
        return Coordinator(plan, kind(kind.Options(**self.options), context))

    def run(self) -> Model:
        """Carry the run out and return the last version."""
        names = tuple(self.data)
        self._tell(
            RunStarted(at=0, run="r", plan="", seed=0, facilities=names, started=0.0)
        )
        self._tell(_published(0, ()))
        while self._orders and self.core.newest < self.rounds:
            self._work(self._orders.popleft())
        assert self.core.newest == self.rounds
        return self.model(self.rounds)

    def model(self, version: int) -> Model:
        (file,) = self.store.version_dir(version).glob("*.safetensors")
        return load_file(file)

    def loss(self, examples: Sequence[Example]) -> float:
        """Return the mean cross-entropy of the newest version."""
        trainer = self._trainer("", WorkOrder(assignment="", kind="", round=0))
        with reader(self.store.version_dir(self.core.newest)) as version:
            trainer.load(version.read)
        (loss,) = trainer.evaluate(examples).values()
        return loss

    def _tell(self, event: Event) -> None:
        for command in self.core.handle(event):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Assign():
                self._orders.append(command)
            case Aggregate():
                self.store.aggregate(
                    command.version,
                    command.terms,
                    command.reducer,
                    command.optimizer,
                    command.states,
                )
                self._tell(_published(command.version, command.terms))
                core = self.core
                self.store.collect_garbage(
                    1, core.needed_versions(), core.held(), core.spent()
                )
            case Evaluate(facility=facility, order=order):
                self._tell(
                    EvaluationReported(
                        at=0,
                        facility=facility,
                        assignment=order.assignment,
                        version=order.version or 0,
                        loss=1.0,
                    )
                )
            case _:
                pass

    def _trainer(self, facility: str, order: WorkOrder) -> Softmax:
        batch = self.batches.get(facility, 32)
        return Softmax(
            TrainerContext(
                source="zeros",
                dtype="float32",
                model_options=SoftmaxModelOptions(),
                work=SoftmaxWorkOptions(batch=batch, **self.work),
                seed=order.round,
            )
        )

    def _work(self, command: Assign) -> None:
        facility, order = command.facility, command.order
        base, steps = self.core.newest, order.steps or self.steps
        trainer = self._trainer(facility, order)
        with ExitStack() as stack:
            version = stack.enter_context(reader(self.store.version_dir(base)))
            trainer.load(version.read)
            control = None
            if order.control:
                state = self.store.state_dir(order.control)
                control = stack.enter_context(reader(state)).read
            trainer.correct(
                Correction(
                    lr_scale=order.lr_scale, proximal=order.proximal, control=control
                )
            )
        before = {name: value.copy() for name, value in trainer.tensors()}
        batch = self.batches.get(facility, 32)
        progress = self.core.progress(order.assignment)
        assert progress is not None
        stream = Batches(
            self.data[facility],
            batch,
            seed=self.seed,
            facility=facility,
            seen=progress.seen,
        )
        rates = 0.0
        for step in range(steps):
            rates += trainer.plain_rate or 0.0
            trainer.step(stream[step])
        deltas = [(name, value - before[name]) for name, value in trainer.tensors()]
        self._deliver(command, base, deltas, rates, steps * batch)

    def _deliver(
        self, command: Assign, base: int, deltas: list, rates: float, samples: int
    ) -> None:
        name, steps = command.order.assignment, command.order.steps or self.steps
        manifest = self.store.manifest(base)
        measured = Measured(
            assignment=name,
            facility=command.facility,
            base=base,
            base_sha256=manifest.sha256,
            steps=steps,
            samples=samples,
            metrics={"lr_sum": rates},
        )
        folder = self.store.update_dir(name)
        shapes = {tensor: delta.shape for tensor, delta in deltas}
        write_update(folder, shapes, deltas, measured, dtype="float32")
        verify_update(folder, manifest, base)
        self._tell(
            UpdateArrived(
                at=0,
                facility=command.facility,
                assignment=name,
                base=base,
                steps=steps,
                samples=samples,
                partial=False,
                bytes=1,
                metrics=measured.metrics,
                timings={"train_s": 1.0 * steps},
            )
        )


def _published(version: int, terms: tuple) -> VersionPublished:
    return VersionPublished(
        at=0, version=version, sha256=str(version), bytes=1, seconds=0, terms=terms
    )
