"""Real ranks that train a small language model, each way, and write what they found.

Run as ``python engine_ranks.py FOLDER``. All cases of a number of ranks are done in one
launch: the program imports all there is once, then forks, as imports cost seconds.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from hansa.core.errors import HansaError
from hansa.worker.base import Correction, Example, TrainerContext
from hansa.worker.engine import make
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.options import TorchModuleModelOptions, TorchModuleWorkOptions
from hansa.worker.team import SOLO, Team
from hansa.worker.trainers.causal_lm import CausalLM, write_assets
from hansa.worker.trainers.tokenizer import train_tokenizer
from hansa.worker.trainers.torch_module import TorchModule, TorchParts

WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "yew")
EXAMPLES = [
    Example("upper", f"Write {word} in capitals.", word.upper()) for word in WORDS
] + [Example("length", f"How long is {'o' * n}?", str(n)) for n in range(1, 11)]
SIZES = {"hidden": 16, "layers": 2, "heads": 2, "vocabulary": 270}
STEPS = 3

# How many examples each rank has in each step: some have none.
PARTS = {
    1: [[6], [6], [6]],
    2: [[5, 1], [0, 6], [2, 4]],
    4: [[3, 1, 0, 2], [0, 0, 5, 1], [1, 1, 3, 1]],
}

# With one example a pass, each one's gradient is rounded alike for any number of ranks,
# and sums are in float32: what is left is their order.
MIXED = {"precision": "mixed", "micro_batch": 1}
SGD = {"optimizer": "sgd", "lr": 0.5, "clip": None, "weight_decay": 0.0}
LORA = {"kind": "lora"}
EVERYWHERE: dict[str, dict[str, Any]] = {
    "float32": {},
    "mixed": MIXED,
    "lora": LORA,
    "lora-mixed": LORA | MIXED,
}
ON_TWO: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "twice": {"activation_checkpointing": True},
    "fedprox": {"correct": "proximal"},
    "scaffold": SGD | {"correct": "control"},
    "lora-bfloat16": LORA | MIXED | {"precision": "bfloat16"},
    "lora-1": LORA | {"lora_rank": 1},
    "hub": {"kind": "hub"},
}
FSDP_ON_TWO: dict[str, dict[str, Any]] = {"offload": MIXED | {"cpu_offload": True}}
SAVED = ("float32", "mixed")
BACKENDS = ("ddp", "zero1", "fsdp")


def context(
    folder: Path, kind: str, team: Team, *, fresh: bool = False, **work: Any
) -> TrainerContext:
    work = {
        "batch": 6,
        "lr": 1e-2,
        "sequence_length": 64,
        "micro_batch": 2,
        "weight_decay": 0.1,
    } | work
    return TrainerContext(
        source=str(folder / "model") if kind == "hub" else "tiny-llama",
        dtype="float32",
        model_options=CausalLMModelOptions.model_validate(
            SIZES | {"lora": {"rank": 3, "alpha": 6.0} if kind == "lora" else None}
        ),
        work=CausalLMWorkOptions.model_validate(work),
        seed=1,
        assets=None if fresh else folder / kind,
        corpus=lambda: EXAMPLES,
        team=team,
    )


def part(step: int, team: Team) -> tuple[list[Example], int]:
    """Return a rank's examples; those of a step are the same for any number."""
    sizes = PARTS[team.world][step]
    start = sum(sizes[: team.rank])
    every = [EXAMPLES[(6 * step + i) % len(EXAMPLES)] for i in range(6)]
    return every[start : start + sizes[team.rank]], 6


class Ranks:
    """What one rank does in one launch."""

    def __init__(self, folder: Path, team: Team) -> None:
        self.folder = folder
        self.team = team
        self.found: dict[str, Any] = {}
        self.backends = BACKENDS if team.world > 1 else ("none",)

    def run(self) -> None:
        cases = EVERYWHERE | (ON_TWO if self.team.world < 4 else {})
        for sharding in self.backends:
            more = FSDP_ON_TWO if sharding == "fsdp" and self.team.world == 2 else {}
            for name, work in (cases | more).items():
                self.train(sharding, name, **work)
            self.user_model(sharding)
        if self.team.world == 4:
            return
        for sharding in self.backends:
            for name in SAVED:
                self.restore(sharding, name)
            self.forget(sharding)
        self.moments_alone()
        self.refuse()

    def trainer(
        self, sharding: str, kind: str = "plain", correct: str = "", **work: Any
    ) -> CausalLM:
        assets = self.folder / kind
        made = CausalLM(
            context(self.folder, kind, self.team, sharding=sharding, **work)
        )
        self.reader = Counting(values(assets))
        made.load(self.reader)
        if correct:
            control = Counting({n: shifted(v) for n, v in values(assets).items()})
            made.correct(
                Correction(
                    lr_scale=0.5,
                    proximal=0.3,
                    control=control if correct == "control" else None,
                )
            )
        return made

    def steps(self, trainer: CausalLM, numbers: Sequence[int]) -> list[float]:
        return [trainer.step(*part(step, self.team)) for step in numbers]

    def train(self, sharding: str, name: str, **work: Any) -> None:
        trainer = self.trainer(sharding, **work)
        read = self.reader.read
        share = EXAMPLES[self.team.rank : 3 : self.team.world]  # some have none
        before = trainer.evaluate(share)
        losses = self.steps(trainer, range(1))
        if name in SAVED:
            place = self.saved(self.team.world, sharding, name)
            if self.team.rank == 0:
                place.mkdir()
            self.barrier()
            trainer.save(place)
        losses += self.steps(trainer, range(1, STEPS))
        self.keep(f"{sharding}-{name}", trainer, losses, read=read, before=before)

    def keep(
        self, name: str, trainer: CausalLM | TorchModule, losses: Any, **more: Any
    ) -> None:
        """Keep what a trainer has come to; all ranks have to ask for it."""
        tensors = dict(trainer.tensors())
        report = trainer.report()
        if self.team.rank == 0:
            np.savez(self.folder / f"{self.team.world}-{name}.npz", **tensors)
        self.found[name] = more | {
            "losses": losses,
            "words": dict(report.words),
            "numbers": dict(report.numbers),
        }

    def user_model(self, sharding: str) -> None:
        """A user's model: parts that are frozen, unused, used by some; a norm."""
        made = TorchModule(
            TrainerContext(
                source="user_model:build",
                dtype="float32",
                model_options=TorchModuleModelOptions(),
                work=TorchModuleWorkOptions(
                    batch=6, lr=0.05, weight_decay=0.1, sharding=sharding
                ),
                seed=3,
                modules=("user_model:build",),
                team=self.team,
            )
        )
        drawn = np.random.default_rng(5).normal(size=(STEPS, 6, 4)).astype("f4")
        losses, seldom = [], []
        for step in range(STEPS):
            sizes = PARTS[self.team.world][2]
            start = sum(sizes[: self.team.rank])
            mine = drawn[step, start : start + sizes[self.team.rank]]
            losses.append(made.step([Example("t", x, x.sum()) for x in mine], 6))
            seldom.append(bool((mine[:, 0] > 1).any()))
        test = [Example("t", x, x.sum()) for x in drawn[0]]
        tests = made.evaluate(test[self.team.rank :: self.team.world])
        self.keep(f"{sharding}-user", made, losses, tests=tests, seldom=seldom)

    def saved(self, world: int, sharding: str, name: str) -> Path:
        return self.folder / f"saved-{world}-{sharding}-{name}"

    def restore(self, sharding: str, name: str) -> None:
        """Take up what any launch has saved."""
        found = {}
        for world, other in [(self.team.world, sharding), *((4, o) for o in BACKENDS)]:
            trainer = self.trainer(sharding, **EVERYWHERE[name])
            self.steps(trainer, range(1, 2))  # all of that has to be gone
            trainer.restore(self.saved(world, other, name))
            self.found["seed"] = torch.initial_seed()  # of the last: from four ranks
            losses = self.steps(trainer, range(1, STEPS))
            found[f"{world}-{other}"] = losses
        self.found[f"{sharding}-{name}-restored"] = found

    def forget(self, sharding: str) -> None:
        """Give a trainer up; an allocation may make many, one after the other."""
        trainer = self.trainer(sharding)
        self.steps(trainer, range(1))
        weight = weakref.ref(next(iter(trainer._model.module.parameters())))
        del trainer
        gc.collect()
        self.found[f"{sharding}-freed"] = weight() is None

    def moments_alone(self) -> None:
        """The optimizer goes on from the version, not from the weights it had."""
        sharding = self.backends[-1]
        trainer = self.trainer(sharding)
        place = self.saved(self.team.world, sharding, "float32")
        trainer.take_up(place)
        done = trainer._engine.steps
        losses = self.steps(trainer, range(1))
        self.keep("moments", trainer, losses, done=done)

    def refuse(self) -> None:
        """What is refused, on all ranks alike."""
        world, one = self.team.world, self.backends[0]
        trainer = self.trainer(one)
        saved = self.saved(world, one, "float32")

        def damaged(file: str) -> Callable[[], None]:
            stem, _, ending = file.partition(".")

            def do() -> None:
                broken = self.folder / f"broken-{world}-{file}"
                if self.team.rank == 0:
                    broken.mkdir()
                    for path in saved.iterdir():
                        (broken / path.name).write_bytes(path.read_bytes())
                    last = broken / f"{stem}-{world - 1:05}.{ending}"
                    last.write_bytes(last.read_bytes()[:100])
                self.barrier()
                trainer.restore(broken)

            return do

        others: dict[str, Callable[[], object]] = {
            "nothing": lambda: trainer.restore(self.folder / "plain"),
            "record": damaged("pieces.json"),
            "arrays": damaged("pieces.safetensors"),
            "optimizer": lambda: self.trainer(one, optimizer="sgd").restore(saved),
            "model": lambda: self.trainer(one, kind="lora").restore(saved),
            "dtype": lambda: self.trainer(one, precision="bfloat16").restore(saved),
            "ranks": lambda: self.trainer("none" if world > 1 else "ddp"),
            "offload": lambda: self.trainer(one, cpu_offload=True),
            "version": self.one_rank_can_not_read,
        }
        if world > 1:
            others["not in force"] = self.something_else
        for name, do in others.items():
            self.found[f"refused-{name}"] = None
            try:
                do()
            except HansaError as error:
                told = [error.code, error.message, error.hint]
                self.found[f"refused-{name}"] = told

    def one_rank_can_not_read(self) -> None:
        trainer = self.trainer(self.backends[-1])
        there = values(self.folder / "plain")
        if self.team.rank == self.team.world - 1:
            del there["model.norm.weight"]
        trainer.load(there.__getitem__)

    def something_else(self) -> None:
        """A back end that gives another one than it is asked for."""
        before = dict(make.ENGINES)
        make.ENGINES["fsdp"] = "engine_ranks:Pretender"
        try:
            self.trainer("fsdp")
        finally:
            make.ENGINES.update(before)

    def barrier(self) -> None:
        if self.team.world > 1:
            torch.distributed.barrier()


def Pretender(*args: Any) -> Any:  # noqa: N802 - stands for a class
    from hansa.worker.engine.ddp import Replicated

    made = Replicated(*args)
    made.words = lambda: {"sharding": "fsdp"}  # type: ignore[method-assign]
    return made


class Counting:
    """A reader by rows that counts what is read."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values
        self.read = 0

    def __call__(self, name: str) -> np.ndarray:
        raise AssertionError("only rows should be read")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        found = self.values[name][start:stop].astype(np.float32)
        self.read += found.size
        return found


def shifted(value: np.ndarray) -> np.ndarray:
    """Return a control variate of a tensor's shape, other in each row."""
    return np.sin(np.arange(value.size)).reshape(value.shape) / 50


def values(assets: Path) -> dict[str, np.ndarray]:
    with np.load(assets / "values.npz") as file:
        return dict(file)


def make_versions(folder: Path) -> None:
    write_hub_model(folder / "model")
    for name in ("plain", "lora", "hub"):
        (folder / name).mkdir()
        first = CausalLM(context(folder, name, SOLO, fresh=True))
        # Adapters begin with zeros, which would leave half of them without gradient.
        drawn = np.random.default_rng(3)
        tensors = {
            key: value if value.any() else drawn.normal(0, 0.1, value.shape)
            for key, value in first.tensors()
        }
        np.savez(folder / name / "values.npz", **tensors)
        write_assets(first, folder / name)


def write_hub_model(folder: Path) -> None:
    """Write a model of another architecture as `save_pretrained` does."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=280, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    texts = [text for one in EXAMPLES for text in (one.input, one.output)]
    train_tokenizer(texts, 280).write(folder)


class Net(nn.Module):
    """Has what is federated and not trained: a frozen layer, a norm's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.seldom = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.frozen(self.first(x)))
        chosen = x[:, 0] > 1  # of some steps' examples, so on some ranks
        if chosen.any():
            hidden = hidden + chosen[:, None] * self.seldom(x)
        with torch.no_grad():  # its statistics only: they depend on a rank's part
            self.norm(torch.cat((hidden, hidden)))
        return self.last(hidden)


def mean_square(model: nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    x = torch.tensor(np.stack([example.input for example in batch]))
    y = torch.tensor([[float(example.output)] for example in batch])
    return nn.functional.mse_loss(model(x), y)


def build(seed: int, options: dict[str, Any]) -> TorchParts:
    torch.manual_seed(seed)
    return TorchParts(model=Net(), loss=mean_square)


def one_rank(folder: Path, rank: int, world: int) -> None:
    if world > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting-{world}",
            rank=rank,
            world_size=world,
        )
    ranks = Ranks(
        folder, Team(rank=rank, world=world, local=rank, ranks_per_node=world)
    )
    ranks.run()
    (folder / f"found-{world}-{rank}.json").write_text(json.dumps(ranks.found))
    if world > 1:
        torch.distributed.destroy_process_group()


def start(folder: Path, world: int) -> list[int]:
    """Start the ranks of a launch; return their processes."""
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            code = 1
            with suppress(BaseException):
                try:
                    one_rank(folder, rank, world)
                    code = 0
                except BaseException:
                    traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return children


def wait(children: Sequence[int]) -> None:
    if any(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children):
        sys.exit("a rank has failed")


def main() -> None:
    # What the cases need, once, before there are several processes.
    import peft  # noqa: F401
    import torch.distributed.fsdp  # noqa: F401

    warnings.simplefilter("error")
    user = ModuleType("user_model")
    user.build = build  # type: ignore[attr-defined]
    sys.modules["user_model"] = user
    sys.modules["engine_ranks"] = sys.modules["__main__"]
    folder = Path(sys.argv[1])
    make_versions(folder)
    wait(start(folder, 4))
    wait([*start(folder, 2), *start(folder, 1)])


if __name__ == "__main__":
    main()
