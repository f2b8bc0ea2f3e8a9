"""A trainer of many ranks for tests: softmax regression over gloo, with troubles.

`Ranks` starts the processes of a launch, quickly: they are forked from one that has
imported torch. The trainer is the plug-in ``toy`` for them (`variables` for others).
What goes wrong is in the variable TOY, as ``{"rank": 1, "call": 3, "do": "kill"}``, at
the third step that the rank's process does:

    kill      the process is killed          stop    it is stopped
    fail      an exception of Python's       refuse  an error that trying does not help
    unable    it can't use a checkpoint

With ``when`` it waits until there is such a path (a pattern); with ``once`` it leaves a
file, and does not happen again where that is. ``{"bad": 17}``: example 17 is no number.
"""

from __future__ import annotations

import glob
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from worker_place import Place

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import Example, Report, TrainerContext, TrainerPlugin
from hansa.worker.options import SoftmaxModelOptions, SoftmaxWorkOptions
from hansa.worker.tasks.digits import Digits
from hansa.worker.trainers.softmax import Softmax, loss_and_gradient

PLUGIN = TrainerPlugin(
    model_options=SoftmaxModelOptions,
    work_options=SoftmaxWorkOptions,
    target="toy_team:Toy",
    parallel=True,
)
MODEL = {"trainer": "toy", "source": "normal", "dtype": "float32", "options": {}}
WORK = {"batch": 18, "lr": 0.5}

_PRELOAD = ["__main__", "toy_team", "hansa.worker.__main__", "hansa.worker.team.group"]
_PRELOAD += ["hansa.worker.tasks.digits", "sklearn.datasets"]


def variables(folder: Path) -> dict[str, str]:
    """Return variables with which the plug-in is found; makes a package in `folder`."""
    info = folder / "toy-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hansa.trainers]\ntoy = toy_team:PLUGIN\n")
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(Path(__file__).parent)))}


def job(place: Place, number: int = 1, world: int = 2, **fields: Any) -> Path:
    """Make a job with the toy on so many ranks, with a checkpoint after each step."""
    order = {"model": MODEL, "work": WORK, **fields.pop("order", {})}
    settings = {"heartbeat_s": 0.0, "checkpoint_s": 0.0, "launched": True, **fields}
    return place.job(number, order=order, ranks_per_node=world, **settings)


class Ranks:
    """The processes of a launch on this host; a context that ends them.

    Args:
        path: The job file.
        world: How many.
        env: More variables.
        times: Other seconds of `hansa.worker.team.watch`, by name.
    """

    def __init__(
        self,
        path: Path,
        world: int = 2,
        env: Mapping[str, str] | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        package = variables(path.parent.parent / "package")["PYTHONPATH"]
        log = path.parent / "words"
        self._words = [log.with_suffix(f".{rank}") for rank in range(world)]
        self.processes: list[ForkServerProcess] = []
        for rank in range(world):
            own = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}
            told = {
                **(env or {}),
                **{name: str(number) for name, number in own.items()},
            }
            arguments = (path, package, told, dict(times or {}), self._words[rank])
            self.processes.append(context.Process(target=_rank, args=arguments))

    def __enter__(self) -> Ranks:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
            process.close()

    def codes(
        self, seconds: float = 60.0, of: Sequence[int] | None = None
    ) -> list[Any]:
        """Wait until ranks (all) have ended; return their exit codes."""
        end = time.monotonic() + seconds
        chosen = [self.processes[rank] for rank in of or range(len(self.processes))]
        for process in chosen:
            process.join(max(end - time.monotonic(), 0.0))
        return [process.exitcode for process in chosen]

    def words(self, rank: int) -> str:
        """Return what a rank has said on stderr."""
        return self._words[rank].read_text()


def broken(examples: Sequence[Example], bad: int | None) -> list[Example]:
    """Return examples of which one, if any, is no number."""
    found = list(examples)
    if bad is not None and bad < len(found):
        found[bad] = Example("digits", np.full(64, np.nan), 3)
    return found


def _rank(
    path: Path, package: str, env: dict[str, str], times: dict[str, float], words: Path
) -> None:
    from hansa.worker import saver
    from hansa.worker.__main__ import main
    from hansa.worker.team import watch

    sys.path[:0] = package.split(os.pathsep)
    os.environ.update(env)
    os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    for name, seconds in times.items():
        setattr(watch, name, seconds)
    saver.SHARE = 1e9  # as often as asked
    save = saver.Saver.save
    saver.Saver.save = lambda self, *told: (save(self, *told), self.wait())
    bad = json.loads(env.get("TOY", "{}")).get("bad")
    load = Digits.load
    Digits.load = lambda self, *told: broken(load(self, *told), bad)
    sys.exit(main(["run", str(path), "--attempt", "7-1"]))


def _is_time(plan: Mapping[str, Any]) -> bool:
    if "once" in plan and Path(plan["once"]).exists():
        return False
    end = time.monotonic() + 60
    while "when" in plan and not glob.glob(plan["when"]):  # noqa: PTH207
        assert time.monotonic() < end
        time.sleep(0.01)
    if "once" in plan:
        Path(plan["once"]).touch()
    return True


class Toy(Softmax):
    """Plain SGD; every rank has the whole model."""

    calls: ClassVar[int] = 0

    def __init__(self, context: TrainerContext) -> None:
        super().__init__(context)
        self._team = context.team
        self._rate = float(context.work.model_dump()["lr"])
        self._samples = 0
        plan = json.loads(os.environ.get("TOY", "{}"))
        self._plan = plan if plan.get("rank") == self._team.rank else {}

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        weights, bias = self._tensors["weights"], self._tensors["bias"]
        found = np.zeros(1 + weights.size + bias.size)
        if batch:
            inputs = np.stack([np.asarray(one.input, np.float32) for one in batch])
            labels = np.array([one.output for one in batch])
            parts = loss_and_gradient(weights, bias, inputs, labels)
            flat = np.concatenate([np.ravel(part) for part in parts])
            found[:] = flat * (len(batch) / (of or len(batch)))
        self._trouble()
        found = self._summed(found)
        if math.isfinite(found[0]):
            moved = (self._rate * found[1:]).astype(np.float32)
            weights -= moved[: weights.size].reshape(weights.shape)
            bias -= moved[weights.size :]
            self._samples += len(batch)
        return float(found[0])

    def save(self, directory: Path) -> None:
        if self._team.rank == 0:
            super().save(directory)
        mine = directory / f"rank-{self._team.rank}.json"
        mine.write_text(json.dumps({"samples": self._samples}))

    def restore(self, directory: Path) -> None:
        super().restore(directory)
        told = (directory / f"rank-{self._team.rank}.json").read_text()
        if "samples" not in told or self._plan.get("do") == "unable":
            raise WorkerError(f"Rank {self._team.rank} can't use {directory}.")

    def report(self) -> Report:
        samples = self._summed(np.array([float(self._samples)]))
        numbers = {"tokens": float(samples[0])}
        return Report(words={"sharding": "toy"}, numbers=numbers)

    def _summed(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._team.world == 1:
            return numbers
        import torch
        from torch import distributed

        tensor = torch.from_numpy(numbers)
        distributed.all_reduce(tensor)
        return tensor.numpy()

    def _trouble(self) -> None:
        Toy.calls += 1
        if self._plan.get("call") != Toy.calls or not _is_time(self._plan):
            return
        match self._plan["do"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "fail":
                raise ValueError("a bug")
            case "refuse":
                raise SpecError("The example is too long.", hint="Cut it.")
