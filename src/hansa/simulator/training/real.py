"""The worker's own trainer and task, in this process: real training of small models.

An order is done as `hansa.worker.session` does it: a new trainer with the same seed,
loaded with the version in the format that it is published in, on the same batches. So
the numbers are those of a real run, but for the rounding of what a real run writes to
files: updates (`update.dtype`) and sums in fp32.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from tempfile import mkdtemp
from weakref import finalize

import numpy as np

from hansa.coordinator.setup import CACHE, initial_request
from hansa.core.errors import HansaError, SpecError
from hansa.simulator.training.base import LocalWork, Trained, Vector
from hansa.simulator.training.work import batch_of, diverged
from hansa.site import policy
from hansa.spec.federation import FacilitySpec, FederationSpec
from hansa.spec.simulation import RealTraining
from hansa.spec.site import load_site
from hansa.store import Store, reader
from hansa.store.dtypes import convert, sent, stored
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    PlainSteps,
    Task,
    TensorReader,
    Trainer,
)
from hansa.worker.data import Batches
from hansa.worker.initial import Request, write_initial
from hansa.worker.job import Job, ModelPart, Order, TaskPart, validated
from hansa.worker.session import as_hansa_error, build_task, build_trainer


class Real:
    """The `Training` of a federation by its own trainer.

    Args:
        spec: The federation.
        chosen: What it says of this kind of training.
        seed: The run's seed.

    Raises:
        SpecError: A model or work that can't be trained here, or a group of data that
            is not there.
        PluginError: There is no such trainer or task.
        PolicyError: A facility's site.yaml does not allow the task or the model.
    """

    def __init__(self, spec: FederationSpec, chosen: RealTraining, seed: int) -> None:
        if spec.aggregation.adapters != "average":
            raise SpecError(
                "Exact sums of adapters can't be simulated; there are only averages.",
                hint="Set `aggregation.adapters: average`.",
            )
        self._spec, self._seed = spec, seed
        self._folder = Path(mkdtemp(prefix="hansa-simulation-"))
        finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._model = _Model(self._folder, spec, seed)
        self.version_bytes = chosen.bytes or self._model.bytes
        self.update_bytes = chosen.bytes or self._model.update_bytes
        self._access = {
            name: _access(spec, one) for name, one in spec.facilities.items()
        }
        self._tasks: dict[str, Task] = {}
        self._examples = {
            name: self._task(name).load("train", one.task.splits)
            for name, one in self._access.items()
        }

    def initial(self) -> Vector:
        """Return version 0, made by the trainer as a server has it made."""
        return self._model.initial

    def train(self, facility: str, base: Vector | None, work: LocalWork) -> Trained:
        """Do an order's steps with a new trainer.

        Raises:
            WorkerError: The loss is not finite, or the trainer failed.
            HansaError: The trainer refuses the work.
        """
        if base is None:
            raise TypeError("a trainer needs a vector")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return self._trained(facility, base, work)
        except HansaError:
            raise
        except Exception as error:  # a trainer may fail in any way, as in a job
            raise as_hansa_error(error) from error

    def losses(self, weights: Vector | None) -> Mapping[str, float]:
        """Return the test loss by task, as the first of `evaluation.on` has it."""
        if weights is None:
            raise TypeError("a trainer needs a vector")
        self._evaluator.load(self._model.reader(weights))
        return self._evaluator.evaluate(self._test)

    def _trained(self, facility: str, base: Vector, work: LocalWork) -> Trained:
        trainer = self._trainer(facility, "train", work.round)
        trainer.load(self._model.reader(base))
        control = None
        if work.control is not None:
            control = self._model.reader(work.control, "float32")
        trainer.correct(
            Correction(lr_scale=work.lr_scale, proximal=work.proximal, control=control)
        )
        batches = Batches(
            self._examples[facility],
            batch_of(self._spec, facility),
            seed=self._seed,
            facility=facility,
            seen=work.seen,
        )
        samples, metrics = _do_steps(trainer, batches, work.steps)
        delta = self._model.difference(trainer, base)
        return Trained(delta=delta, samples=samples, metrics=metrics)

    @cached_property
    def _evaluator(self) -> Trainer:
        # Evaluating changes nothing in it, so one is enough.
        return self._trainer(self._spec.evaluation.on[0], "evaluate", 0)

    @cached_property
    def _test(self) -> Sequence[Example]:
        name = self._spec.evaluation.on[0]
        return self._task(name).load("test", self._access[name].task.test_splits)

    def _task(self, facility: str) -> Task:
        """Return a facility's task; those with the same data share one."""
        part = self._access[facility].task
        plain = part.model_copy(update={"splits": None, "test_splits": None})
        key = plain.model_dump_json()
        if key not in self._tasks:
            self._tasks[key] = build_task(self._job(facility, "train", 0))
        return self._tasks[key]

    def _trainer(self, facility: str, kind: str, round_: int) -> Trainer:
        return build_trainer(self._job(facility, kind, round_), self._model.assets)

    def _job(self, facility: str, kind: str, round_: int) -> Job:
        """Return what the worker would be told."""
        access = self._access[facility]
        model = self._spec.model.model_dump(mode="json") | {"source": access.source}
        order = Order.model_validate(
            {
                "run": "simulation",
                "assignment": "",
                "kind": kind,
                "facility": facility,
                "round": round_,
                "seed": self._seed,
                "model": ModelPart.model_validate(model),
                "work": self._spec.facilities[facility].work.options,
            }
        )
        return Job(
            order=order,
            task=access.task,
            modules=access.modules,
            key="",
            number=1,
            mailbox=self._folder,
            job_dir=self._folder,
            state_dir=self._folder,
        )


@dataclass(frozen=True, slots=True)
class _Access:
    """What a facility gives its jobs, as its site.yaml says; see `worker.job.Job`."""

    task: TaskPart
    source: str
    modules: tuple[str, ...]


def _access(spec: FederationSpec, facility: FacilitySpec) -> _Access:
    task, source = spec.task, spec.model.source
    if facility.gateway.type != "local":
        built_in = TaskPart(
            name=task.name,
            splits=facility.data,
            cache=CACHE.expanduser(),
            options=task.options,
        )
        return _Access(built_in, source, (source,))
    site = load_site(str(facility.gateway.options["site"]))
    access = policy.task_access(site, task.name)
    own = TaskPart(
        name=task.name,
        source=access.data,
        splits=access.splits if facility.data is None else facility.data,
        test_splits=access.test_splits,
        cache=site.cache,
        options={**task.options, **access.options},
    )
    return _Access(own, policy.model_source(site, source), site.modules)


class _Model:
    """The tensors of a model as one vector, and what else belongs to a version."""

    def __init__(self, folder: Path, spec: FederationSpec, seed: int) -> None:
        request = {**initial_request(spec), "seed": seed}
        draft = folder / "draft"
        write_initial(validated(Request, request, "the first version"), draft)
        store = Store(folder, spec.model.dtype)
        self.bytes = store.import_initial(draft).bytes
        shutil.rmtree(draft)
        self.assets = store.version_dir(0)
        self._dtype = stored(spec.model.dtype).numpy
        with reader(store.source_dir("version/0")) as version:
            shapes = version.shapes()
            parts = [np.asarray(version.read(name), np.float64) for name in shapes]
        self.initial: Vector = np.concatenate([part.reshape(-1) for part in parts])
        self._places: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            self._places[name] = (slice(start, start + part.size), shape)
            start += part.size
        self.update_bytes = start * sent(spec.update.dtype).numpy.itemsize

    def reader(self, vector: Vector, dtype: str | None = None) -> TensorReader:
        """Return what reads a vector as tensors, in the version's format or another.

        Tensors that are no part of the vector, as counters, are those of version 0.
        """
        chosen = stored(dtype).numpy if dtype else self._dtype

        def read(name: str) -> Array:
            if name not in self._places:
                with reader(self.assets) as version:
                    return version.read(name)
            part, shape = self._places[name]
            tensor = np.empty(shape, chosen)
            convert(vector[part].reshape(shape), tensor)
            return tensor

        return read

    def difference(self, trainer: Trainer, base: Vector) -> Vector:
        """Return what the trainer has changed, in fp32 as a worker computes it."""
        delta, published = np.zeros_like(base), self.reader(base)
        for name, tensor in trainer.tensors():
            part, _ = self._places[name]
            before = published(name).astype(np.float32)
            delta[part] = (tensor.astype(np.float32) - before).reshape(-1)
        return delta


def _do_steps(
    trainer: Trainer, batches: Batches, steps: int
) -> tuple[int, dict[str, float]]:
    """Train, and return the samples seen and the metrics that a worker reports."""
    samples, losses = 0, []
    rates: list[float | None] = []
    for step in range(steps):
        batch = batches[step]
        rates.append(trainer.plain_rate if isinstance(trainer, PlainSteps) else None)
        losses.append(trainer.step(batch))
        if not math.isfinite(losses[-1]):
            raise diverged(losses[-1])
        samples += len(batch)
    metrics = {"train_loss": fmean(losses), "train_loss_last": losses[-1]}
    known = [rate for rate in rates if rate is not None]
    if len(known) == steps:
        metrics["lr_sum"] = sum(known)
    metrics["examples"] = float(batches.examples)
    return samples, metrics
