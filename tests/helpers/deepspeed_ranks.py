"""Real ranks that train a small net with DeepSpeed, and write what they found.

Run as ``python deepspeed_ranks.py FOLDER``. The program imports all there is once, then
forks for each number of ranks, as imports cost seconds.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.core.errors import HansaError
from hansa.worker.base import Correction
from hansa.worker.engine.base import Recipe
from hansa.worker.engine.make import make_engine
from hansa.worker.team import Team
from hansa.worker.trainers.stream import InMemory, fill

STAGES = ("deepspeed-1", "deepspeed-2", "deepspeed-3")
STEPS, OF, LR, DECAY, CLIP = 4, 6, 1e-2, 0.1, 0.2
# Examples of each rank, in each pass of each step; their union is the same.
PARTS = {
    1: [[[0, 1, 2, 3], [4, 5]]],
    2: [[[0, 1], []], [[2, 3, 4], [5]]],
    3: [[[], []], [[0], [1, 2]], [[3], [4, 5]]],
}
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "mixed": {"precision": "mixed"},
    "twice": {"activation_checkpointing": True, "clip": None},
}


class Block(nn.Module):
    """A layer with a weight that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(7, 9)
        self.down = nn.Linear(9, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """It has a single number, something frozen, a table, and a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 7)
        self.layers = nn.ModuleList([Block(), Block()])
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.register_buffer("table", torch.linspace(0.5, 1.5, 7))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.table.to(self.embed.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.frozen(x) * self.scale, self.embed.weight)


def net(*, empty: bool = False) -> Net:
    torch.manual_seed(3)
    if not empty:
        return Net()
    made = Net()
    for module in made.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            needs = parameter.requires_grad
            nothing = nn.Parameter(parameter.detach().to("meta"), requires_grad=needs)
            setattr(module, name, nothing)
    return made


def federated(model: Net) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), "table": model.table}


def version() -> dict[str, np.ndarray]:
    """Return the numbers that training begins from; not those of a fresh net."""
    drawn = np.random.default_rng(5)
    shapes = {name: tuple(tensor.shape) for name, tensor in federated(net()).items()}
    return {
        name: drawn.normal(0, 0.4, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def examples(step: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 13, (OF, 6), generator=drawn)
    return ids[:, :-1], ids[:, 1:]


def losses_of(model: nn.Module, step: int, chosen: Sequence[int]) -> Tensor:
    """Return the loss of each chosen example; of none, what has no gradient."""
    inputs, targets = examples(step)
    index = list(chosen) or [0]
    scores = model(inputs[index]).float()
    each = functional.cross_entropy(
        scores.flatten(0, 1), targets[index].flatten(), reduction="none"
    )
    return each.view(len(index), -1).mean(1)[: len(chosen)] + 0.0 * scores.sum()


class Job:
    """What one rank does in one launch."""

    def __init__(self, folder: Path, team: Team) -> None:
        self.folder = folder
        self.team = team
        self.found: dict[str, Any] = {}

    def engine(self, sharding: str, *, empty: bool = False, **more: Any) -> Any:
        model = net(empty=empty)
        settings = {"precision": "float32", "optimizer": "adamw", "clip": CLIP} | more
        recipe = Recipe(sharding=sharding, weight_decay=DECAY, **settings)
        cpu = torch.device("cpu")
        engine = make_engine(model, federated(model), recipe, self.team, cpu)
        engine.load(version().__getitem__)
        return engine

    def steps(self, engine: Any, numbers: Sequence[int], lr: float = LR) -> list[float]:
        """Train, and return what each step's loss and norm were."""
        return [value for n in numbers for value in self.step(engine, n, lr)]

    def step(self, engine: Any, number: int, lr: float) -> list[float]:
        loss = torch.zeros(())
        for index, chosen in enumerate(PARTS[self.team.world][self.team.rank]):
            engine.begin(last=index == 1)
            part = losses_of(engine.module, number, chosen).sum() / OF
            engine.backward(part, last=index == 1)
            loss += part.detach()
        if self.team.world > 1:
            torch.distributed.all_reduce(loss)
        return [float(loss), engine.step(lr)]

    def keep(self, name: str, engine: Any, figures: Sequence[float]) -> None:
        tensors = dict(engine.tensors())
        if self.team.rank == 0:
            np.savez(self.folder / f"{self.team.world}-{name}.npz", **tensors)
        self.found[name] = {"figures": figures, "words": dict(engine.words())}

    def run(self) -> None:
        world = self.team.world
        if world > 1:
            for sharding in STAGES:
                for name, work in CASES.items() if world == 2 else ():
                    engine = self.engine(sharding, empty=name != "twice", **work)
                    figures = self.steps(engine, range(STEPS))
                    self.keep(f"{sharding}-{name}", engine, figures)
                self.save(sharding, "float32")
                self.save(sharding, "mixed")
        self.save("none" if world == 1 else "fsdp", "float32")
        self.go_on()
        if world == 2:
            self.rows_read()
            self.leftovers()
            self.refusals()

    def save(self, sharding: str, precision: str) -> None:
        """Save after two steps; the rest is what goes on from there has to equal."""
        engine = self.engine(sharding, precision=precision)
        self.steps(engine, range(2))
        place = self.folder / f"saved-{self.team.world}-{sharding}-{precision}"
        place.mkdir(exist_ok=True)
        engine.save(place)
        barrier(self.team)
        figures = self.steps(engine, range(2, STEPS))
        self.keep(f"{sharding}-{precision}-saved", engine, figures)

    def go_on(self) -> None:
        """Take up what other back ends have saved, with another number of ranks."""
        pairs = {
            3: [("deepspeed-3", "3-deepspeed-1-mixed")],
            2: [
                ("deepspeed-1", "3-deepspeed-3-float32"),
                ("deepspeed-2", "3-fsdp-float32"),
                ("deepspeed-3", "3-deepspeed-2-float32"),
                ("deepspeed-1", "2-deepspeed-1-mixed"),
                ("deepspeed-2", "3-deepspeed-3-mixed"),
                ("fsdp", "3-deepspeed-1-float32"),
            ],
            1: [(("none"), "2-deepspeed-2-float32"), ("none", "3-deepspeed-3-float32")],
        }[self.team.world]
        for sharding, saved in pairs:
            engine = self.engine(sharding, precision=saved.rpartition("-")[2])
            self.steps(engine, [3])
            engine.restore(self.folder / f"saved-{saved}")
            figures = self.steps(engine, range(2, STEPS))
            self.keep(f"{sharding}-from-{saved}", engine, figures)
        if self.team.world == 2:
            engine = self.engine("deepspeed-2")
            engine.restore(self.folder / "saved-3-fsdp-float32", optimizer_only=True)
            self.keep("moments", engine, [engine.steps, *self.steps(engine, [0])])
            place = self.folder / "saved-moments"
            place.mkdir(exist_ok=True)
            engine.save(place)

    def rows_read(self) -> None:
        """Count the numbers that a rank reads where every tensor is cut."""
        engine, reader = self.engine("deepspeed-3"), Counting()
        engine.load(reader)
        whole = sum(value.size for value in reader.values.values())
        self.found["read"] = [reader.read, whole]
        value = torch.arange(49.0).view(7, 7)
        frozen = engine.module.module.frozen.weight
        fill({"w": frozen}, InMemory({"w": value}))
        self.found["filled"] = dict(engine.tensors())["frozen.weight"].tolist()

    def leftovers(self) -> None:
        """Say what is left of an engine that nobody uses any more."""
        for sharding in STAGES:
            engine = self.engine(sharding)
            self.steps(engine, [0])
            states = engine.module.basic_optimizer.state
            held = [weakref.ref(t) for state in states.values() for t in state.values()]
            del engine, states
            gc.collect()
            self.found[f"left-{sharding}"] = [ref() is None for ref in held]

    def refusals(self) -> None:
        def corrected() -> None:
            self.engine("deepspeed-1").correct(Correction(proximal=0.1))

        def diverged() -> None:
            engine = self.engine("deepspeed-2")
            engine.backward(engine.module(examples(0)[0]).sum() * 1e39, last=True)
            self.keep("diverged", engine, [engine.step(LR), engine.steps])

        def lacking() -> None:
            values = version()
            if self.team.rank:
                del values["scale"]
            self.engine("deepspeed-3").load(values.__getitem__)

        def single() -> None:
            model = nn.Linear(2, 2)
            model.scale = nn.Parameter(torch.tensor(1.0))
            recipe = Recipe(
                sharding="deepspeed-1", precision="float32", optimizer="adamw"
            )
            make_engine(
                model,
                dict(model.named_parameters()),
                recipe,
                self.team,
                torch.device("cpu"),
            )

        for name, do in {
            "single": single,
            "sgd": lambda: self.engine("deepspeed-1", optimizer="sgd"),
            "bfloat16": lambda: self.engine("deepspeed-2", precision="bfloat16"),
            "adapter": lambda: self.engine("deepspeed-3", adapter_rank=1),
            "correction": corrected,
            "diverged": diverged,
            "lacking": lacking,
        }.items():
            try:
                do()
            except HansaError as error:
                self.found[f"refused-{name}"] = [error.code, error.message]


class Counting:
    """A reader by rows that counts what is read."""

    def __init__(self) -> None:
        self.values = version()
        self.read = 0

    def __call__(self, name: str) -> np.ndarray:
        raise AssertionError("only rows should be read")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        value = self.values[name]
        part = (value if value.ndim else value.reshape(1))[start:stop]
        self.read += part.size
        return part.copy()


def barrier(team: Team) -> None:
    if team.world > 1:
        torch.distributed.barrier()


def work(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting-{world}",
            rank=rank,
            world_size=world,
        )
    job = Job(folder, Team(rank=rank, world=world, local=rank, ranks_per_node=world))
    job.run()
    (folder / f"found-{world}-{rank}.json").write_text(json.dumps(job.found))
    if world > 1:
        torch.distributed.destroy_process_group()


def launch(folder: Path, world: int) -> bool:
    """Run the ranks, and say whether all ended well."""
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            try:
                work(folder, rank, world)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    return not any(ends)


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    # What the ranks need, imported once.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import torch.distributed.fsdp

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    gc.freeze()  # collecting what was imported would copy it in each rank
    folder = Path(sys.argv[1])
    for world in (3, 2, 1):
        if not launch(folder, world):
            sys.exit(f"a rank of {world} has failed")


if __name__ == "__main__":
    main()
