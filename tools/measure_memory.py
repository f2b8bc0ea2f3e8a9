"""Measures the memory of training steps, beside what `hansa plan` foretells.

    python tools/measure_memory.py --repeat 3       all cases, as in docs/planner.md
    python tools/measure_memory.py --only zero1     those whose name has it; repeat it
    python tools/measure_memory.py --json

Each launch is one of its own: so many processes train a model of random tokens with
Hansa's own engines for some steps. On the processor the measure is the peak of the
resident memory (`VmHWM`) of the fullest process, on a GPU that of torch's allocator.
What a process takes before there is a model is measured in the same process first, with
a toy model, and given to the planner as its `base`. Of several launches of a case the
one with the median peak is told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from hansa.planner.memory import predict
from hansa.planner.setting import Setting
from hansa.planner.shape import Adapters, ModelShape, from_config
from hansa.worker.engine.base import Engine, Recipe
from hansa.worker.engine.device import prepare
from hansa.worker.engine.make import make_engine
from hansa.worker.llm_options import LoraOptions
from hansa.worker.team import Team
from hansa.worker.trainers.llama import Llama, LlamaShape
from hansa.worker.trainers.lora import add_adapters

STEPS = 3
_WIDTH = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is trained, and how."""

    sharding: str
    precision: Literal["float32", "bfloat16", "mixed"]
    ranks: int = 1
    hidden: int = _WIDTH
    layers: int = 6
    vocabulary: int = 8192
    heads: int = 8
    micro_batch: int = 2
    length: int = 64
    passes: int = 1
    checkpointing: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lora: int = 0

    @property
    def name(self) -> str:
        """Words that tell it from the others."""
        words = [self.sharding, f"x{self.ranks}", self.precision, self.optimizer]
        words += ["checkpointing"] if self.checkpointing else []
        words += [f"lora-{self.lora}"] if self.lora else []
        words += [f"width-{self.hidden}"] if self.hidden != _WIDTH else []
        return " ".join([*words, f"{self.micro_batch}x{self.length}x{self.passes}"])

    @property
    def config(self) -> dict[str, Any]:
        """The model's config."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "intermediate_size": self.hidden * 3,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.length,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0},
        }

    @property
    def shape(self) -> ModelShape:
        """The model's sizes."""
        shape = from_config(self.config, own=True)
        if not self.lora:
            return shape
        targets = ("q_proj", "v_proj")
        return shape.with_adapters(Adapters(rank=self.lora, targets=targets))

    def setting(self, base: int, *, host: bool) -> Setting:
        """The same for the planner."""
        return Setting(
            sharding=self.sharding,
            precision=self.precision,
            optimizer=self.optimizer,
            micro_batch=self.micro_batch,
            sequence_length=self.length,
            ranks=self.ranks,
            accumulation=self.passes,
            activation_checkpointing=self.checkpointing,
            host=host,
            base=base,
        )


def cases() -> Iterator[Case]:
    """Yield all cases of the table in docs/planner.md."""
    for precision in ("float32", "bfloat16", "mixed"):
        for sharding, ranks in (("none", 1), ("ddp", 2), ("zero1", 2), ("fsdp", 2)):
            # Few tokens: what is held of the model decides.
            one = Case(sharding=sharding, precision=precision, ranks=ranks)
            yield one
            if precision != "bfloat16":
                yield replace(one, passes=2)
    for stage in ("deepspeed-1", "deepspeed-2", "deepspeed-3"):
        one = Case(sharding=stage, precision="mixed", ranks=2)
        yield one
        yield replace(one, passes=2)
        yield replace(one, precision="float32")
        yield replace(one, hidden=1024, layers=4, micro_batch=4, length=128)
    # Many tokens: the activations decide.
    many = Case(sharding="none", precision="float32", micro_batch=8, length=256)
    yield many
    yield replace(many, checkpointing=True)
    yield replace(many, optimizer="sgd", passes=2)
    yield replace(many, sharding="zero1", ranks=2)
    yield replace(many, sharding="fsdp", ranks=2, checkpointing=True)
    yield replace(many, precision="mixed")
    yield replace(many, precision="mixed", lora=16)
    yield replace(many, precision="mixed", sharding="fsdp", ranks=2, lora=16)
    # A wider model, which none of the planner's constants was fitted to.
    wide = Case(
        sharding="none",
        precision="mixed",
        hidden=1024,
        layers=3,
        vocabulary=16384,
        micro_batch=4,
        length=128,
    )
    yield wide
    yield replace(wide, precision="float32", sharding="ddp", ranks=2, passes=2)
    yield replace(wide, sharding="fsdp", ranks=2)
    # Blocks of more than 32 MiB.
    yield replace(wide, precision="float32", micro_batch=33, length=256, layers=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=1, help="launches of each case")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.repeat < 1:
        parser.error("--repeat must be at least 1")
    if asked.case:
        print(json.dumps(train(Case(**json.loads(asked.case)), asked.rank, asked.meet)))
        return
    if not asked.json:
        print("| case | parameters | base | measured | foretold | difference |")
        print("|---|---:|---:|---:|---:|---:|")
    words = asked.only or [""]
    chosen = [one for one in cases() if any(word in one.name for word in words)]
    found = [tell(one, asked.repeat, quiet=asked.json) for one in chosen]
    if asked.json:
        print(json.dumps(found, indent=2))


def tell(case: Case, repeat: int, *, quiet: bool) -> dict[str, Any]:
    """Measure a case and print its median launch as a row of a table."""
    launches = [measure(case) for _ in range(repeat)]
    found = sorted(launches, key=lambda one: one["measured"])[(repeat - 1) // 2]
    if not quiet:
        sizes = (found["base"], found["measured"], found["foretold"])
        cells = [found["name"], f"{found['parameters'] / 1e6:.1f} M"]
        cells += [f"{size / 1e6:,.0f} MB" for size in sizes]
        cells.append(f"{found['difference']:+.1%}")
        print(f"| {' | '.join(cells)} |", flush=True)
    return found


def measure(case: Case) -> dict[str, Any]:
    """Return what a case takes, measured and foretold; that of the fullest rank."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
        words += ["--meet", str(Path(folder) / "meet")]
        ranks = [
            subprocess.Popen(
                [*words, "--rank", str(rank)],
                stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for rank in range(case.ranks)
        ]
        told = [json.loads(rank.communicate()[0]) for rank in ranks]
    fullest = max(told, key=lambda one: one["peak"] - one["base"])
    setting = case.setting(fullest["base"], host=fullest["device"] == "cpu")
    parts = predict(case.shape, setting)
    return {
        "name": case.name,
        "device": fullest["device"],
        "parameters": case.shape.parameters,
        "base": fullest["base"],
        "measured": fullest["peak"],
        "foretold": parts.total,
        "difference": parts.total / fullest["peak"] - 1,
        "parts": parts.to_json(),
    }


def train(case: Case, rank: int, meet: str) -> dict[str, Any]:
    """Train and return the peak of this process, and what it took before."""
    team = Team(rank=rank, world=case.ranks, local=rank, ranks_per_node=case.ranks)
    device = prepare(0, team)
    if case.ranks > 1:
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        torch.distributed.init_process_group(
            backend, init_method=f"file://{meet}", rank=rank, world_size=case.ranks
        )
    toy = replace(case, hidden=64, layers=2, heads=2, vocabulary=64, length=16)
    steps(toy, team, device)
    base = used(device)
    steps(case, team, device)
    found = {"base": base, "peak": peak(device), "device": device.type}
    if case.ranks > 1:
        torch.distributed.destroy_process_group()
    return found


def steps(case: Case, team: Team, device: torch.device) -> None:
    """Do some optimizer steps on random tokens."""
    engine = make(case, team, device)
    ids = torch.randint(case.vocabulary, (case.micro_batch, case.length + 1))
    ids = ids.to(device)
    wanted = torch.ones_like(ids[:, :-1], dtype=torch.bool)
    engine.module.train()
    for _ in range(STEPS):
        for index in range(case.passes):
            last = index == case.passes - 1
            engine.begin(last=last)
            scores = engine.module(ids[:, :-1], wanted).float()
            loss = functional.cross_entropy(scores, ids[:, 1:].flatten())
            del scores
            engine.backward(loss, last=last)
        engine.step(1e-4)


def make(case: Case, team: Team, device: torch.device) -> Engine:
    """Return the engine with a model, whose weights were read as a version's are."""
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    shape = LlamaShape.from_config(case.config)
    with torch.device("meta"):
        model = Llama(shape, None).to(dtype)
    if case.lora:
        add_adapters(model, LoraOptions(rank=case.lora))
    recipe = Recipe(
        sharding=case.sharding,
        precision=case.precision,
        optimizer=case.optimizer,
        clip=1.0,
        activation_checkpointing=case.checkpointing,
    )
    federated = {n: p for n, p in model.named_parameters() if p.requires_grad}
    engine = make_engine(model, federated, recipe, team, device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # memory that nobody wrote to does not count
    sizes = {name: tuple(one.shape) for name, one in federated.items()}
    engine.load(lambda name: np.broadcast_to(np.float32(0.01), sizes[name]))
    return engine


def used(device: torch.device) -> int:
    """Return the bytes that this process takes now."""
    if device.type == "cpu":
        return _status("VmRSS")
    return int(torch.accelerator.memory_allocated(device))


def peak(device: torch.device) -> int:
    """Return the most bytes that this process ever took."""
    if device.type == "cpu":
        return _status("VmHWM")
    return int(torch.accelerator.max_memory_allocated(device))


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
