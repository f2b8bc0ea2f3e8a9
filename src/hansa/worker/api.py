"""For a training program of one's own: `load`, `step`, `submit`.

::

    job = hansa.worker.load()
    job.into(model, optimizer)
    while job.going:
        ...                                # one step
        hansa.worker.step(loss, samples=8)
    hansa.worker.submit(model, losses={"own": test_loss})

The facility's owner lists the program under `programs` in site.yaml; the trainer
`program` starts it in the job, on every rank.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.errors import SpecError, WorkerError
from hansa.store.dtypes import stored
from hansa.store.folder import reader
from hansa.worker.arrays import write_arrays
from hansa.worker.base import Array
from hansa.worker.signals import SIGNALS
from hansa.worker.talk import SCHEMA, VARIABLE, Talk

UPDATE = "update.safetensors"
GRACE_S = 5.0
"""So long a program may still do something when its worker has ended."""

Save = Callable[[Path], None]


class Job:
    """What is to be done, as `load` returns it.

    Attributes:
        kind: "train"; or "evaluate": only the test losses of the version are wanted.
        steps: Steps that are ordered.
        done: Steps that are done; more than none after a restart.
        going: Whether to do another step; false at once for an evaluation.
        evaluates: Whether `submit` must have test losses.
        first: Steps that this facility did in earlier rounds.
        batch: Samples of a step over all ranks (`work.batch`).
        seed: Seed of this order.
        lr_scale: Factor on the learning rate that the strategy asks for.
        options: `model.options.options` and, over it, `work.options`.
        data: Where the facility's data are, by its site.yaml; None: not said.
        groups: `data` of the facility in the federation file.
        version: Folder of the global model: safetensors, and what else belongs to it.
        rank: Which of the processes this is, from 0; as `RANK` in the environment.
        world: How many there are.
        local: Which of its node this is.
    """

    def __init__(self, talk: Talk, order: Mapping[str, Any]) -> None:
        self._talk = talk
        self.kind = str(order["kind"])
        self.steps = int(order["steps"])
        self.done = int(order["done"])
        self.going = self.kind == "train" and self.done < self.steps
        self.evaluates = bool(order["evaluates"])
        self.first = int(order["first"])
        self.batch = int(order["batch"])
        self.seed = int(order["seed"])
        self.lr_scale = float(order["lr_scale"])
        self.options: dict[str, Any] = dict(order["options"])
        self.data = None if order["data"] is None else Path(order["data"])
        self.groups = None if order["groups"] is None else tuple(order["groups"])
        self.version = Path(order["version"])
        self.rank, self.world = int(order["rank"]), int(order["world"])
        self.local = int(order["local"])
        checkpoint = order["checkpoint"]
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self._folder = Path(order["folder"])
        self._save: Save | None = None

    @property
    def left(self) -> int:
        """Steps that are still to be done."""
        return self.steps - self.done if self.kind == "train" else 0

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the version's tensors by name, sorted, one at a time."""
        with reader(self.version) as folder:
            for name in folder.shapes():
                yield name, folder.read(name)

    def state_dict(self) -> dict[str, Any]:
        """Return the version's tensors as torch's, float32, by name."""
        import torch  # noqa: PLC0415 - programs may do without

        return {
            name: torch.from_numpy(np.asarray(value).astype(np.float32))
            for name, value in self.tensors()
        }

    def into(self, model: Any, optimizer: Any = None) -> None:
        """Give a torch model the version's values, and have both saved now and then.

        After a restart, model, optimizer and torch's generators are those of the
        checkpoint instead. Of several ranks the first one saves model and optimizer.

        Args:
            model: An ``nn.Module``; the names of its `state_dict` are the version's.
            optimizer: One of torch's.

        Raises:
            WorkerError: The version is of another model.
        """
        from hansa.worker import own_state  # noqa: PLC0415 - imports torch

        if self.checkpoint is None:
            own_state.set_tensors(model, self.state_dict())
        else:
            own_state.restore(self.checkpoint, model, optimizer, self.rank)
        self._save = lambda folder: own_state.save(folder, model, optimizer, self.rank)

    def save_with(self, save: Save) -> None:
        """Have a function of yours write the state when it is time for it.

        After a restart `checkpoint` is the folder to read it from.

        Args:
            save: Called with a folder on each rank; writes plain files there, of
                different names on each rank.
        """
        self._save = save

    def step(self, loss: Any, samples: int | None = None) -> bool:
        """Say that a step is done: the heartbeat. Saves if it is time to.

        Args:
            loss: Mean training loss of the step's samples on this rank.
            samples: How many these were; None: this rank's share of `batch`.

        Returns:
            Whether to go on, as `going`.

        Raises:
            WorkerError: No step was wanted any more, or the worker has ended.
        """
        if not self.going:
            raise WorkerError(
                "This step was not wanted any more.", hint="Train `while job.going`."
            )
        count = self._share if samples is None else samples
        self._talk.say({"step": {"loss": float(loss), "samples": int(count)}})
        while "save" in (word := self._heard()):
            if self._save is not None:
                self._save(Path(word["save"]))
            self._talk.say({"saved": self._save is not None})
        self.done += 1
        self.going = "go" in word
        return self.going

    def submit(self, model: Any, losses: Mapping[str, float] | None = None) -> None:
        """Hand over the trained model; the end of the job.

        Args:
            model: An ``nn.Module``, or its tensors by name (torch's or numpy's).
            losses: Mean test loss by task.

        Raises:
            WorkerError: The model lacks a tensor of the version.
        """
        if self.rank == 0 and self.kind == "train":
            write_arrays(
                self._folder / UPDATE, lambda: self._trained(model), stored("float32")
            )
        told = {task: float(loss) for task, loss in (losses or {}).items()}
        self._talk.say({"submitted": {"losses": told}})
        self._talk.close()
        self.going = False

    def _trained(self, model: Any) -> Iterator[tuple[str, Array]]:
        own = model if isinstance(model, Mapping) else _tensors_of(model)
        with reader(self.version) as folder:
            names = list(folder.shapes())
        for name in names:
            if name not in own:
                raise WorkerError(f"The model lacks {name!r}, which the version has.")
            value = own[name]
            if hasattr(value, "detach"):
                value = value.detach().float().cpu().numpy()
            yield name, np.asarray(value, np.float32)

    @property
    def _share(self) -> int:
        begin, end = (self.batch * r // self.world for r in (self.rank, self.rank + 1))
        return end - begin

    def _heard(self) -> dict[str, Any]:
        word = self._talk.hear()
        if word is None:
            raise WorkerError("The worker that started this program has ended.")
        return word


def _tensors_of(model: Any) -> Mapping[str, Any]:
    from hansa.worker import own_state  # noqa: PLC0415 - imports torch

    return own_state.tensors_of(model)


_jobs: list[Job] = []


def load() -> Job:
    """Return what is to be done; waits until the global model is there.

    From here on the warnings of the scheduler are the worker's business: this process
    hears of them by `Job.going`. If the worker ends before `submit`, this process does.

    Raises:
        SpecError: This program was not started by a worker.
        WorkerError: The worker has ended, or is a newer one.
    """
    place = os.environ.get(VARIABLE)
    if place is None:
        raise SpecError(
            "This program was not started by Hansa.",
            hint="List it under `programs` in site.yaml and name it in the federation "
            "file: model: {trainer: program, source: NAME}.",
        )
    with suppress(ValueError):  # not in the main thread
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    talk = Talk.to(place)
    order = talk.hear()
    if order is None:
        raise WorkerError("The worker that started this program has ended.")
    if order.get("schema") != SCHEMA:
        raise WorkerError(
            f"The worker speaks schema {order.get('schema')}, this program {SCHEMA}.",
            hint="Use the same Hansa for both.",
        )
    threading.Thread(target=_end_with_the_worker, args=(talk,), daemon=True).start()
    _jobs[:] = [Job(talk, order)]
    return _jobs[0]


def _end_with_the_worker(talk: Talk) -> None:
    """End this process soon after the worker: it may wait for other ranks for ever."""
    talk.wait_for_end()
    time.sleep(GRACE_S)
    if not talk.closed:
        os._exit(1)


def step(loss: Any, samples: int | None = None) -> bool:
    """Do `Job.step` of the job that was loaded."""
    return _current().step(loss, samples)


def submit(model: Any, losses: Mapping[str, float] | None = None) -> None:
    """Do `Job.submit` of the job that was loaded."""
    _current().submit(model, losses)


def _current() -> Job:
    if not _jobs:
        raise SpecError("No job was loaded.", hint="Call hansa.worker.load() first.")
    return _jobs[0]
