"""The parts of the back ends, each alone: optimizers, rows, devices, what is chosen."""

from __future__ import annotations

import errno
import resource
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hansa.core.errors import SpecError, WorkerError
from hansa.store.dtypes import BY_NAME
from hansa.store.folder import reader
from hansa.worker.arrays import write_arrays
from hansa.worker.engine import choice, state, zero1
from hansa.worker.engine.base import Recipe
from hansa.worker.engine.choice import way
from hansa.worker.engine.device import rank_device
from hansa.worker.engine.layers import checkpoint_activations, layers_of
from hansa.worker.engine.make import refuse
from hansa.worker.engine.none import Alone
from hansa.worker.engine.optimizer import make_optimizer
from hansa.worker.engine.pieces import share
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.reading import FolderReader, read_rows
from hansa.worker.team import SOLO, Team
from hansa.worker.trainers.llama import Llama, LlamaShape

CPU = torch.device("cpu")
SHAPE = LlamaShape(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=16,
)


def test_a_full_disk_is_told_as_that(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="os error") as caught:
            state._save({"a": torch.zeros(1 << 19)}, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


def recipe(**changes: Any) -> Recipe:
    plain = {"sharding": "none", "precision": "float32", "optimizer": "adamw"}
    return Recipe(**(plain | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "options"),
    [
        ({}, torch.optim.AdamW, {"fused": True}),
        ({"fused": False}, torch.optim.AdamW, {}),
        ({"fused": False, "optimizer": "sgd"}, torch.optim.SGD, {}),
        (
            {"fused": False, "optimizer": "sgd", "momentum": 0.9},
            torch.optim.SGD,
            {"momentum": 0.9},
        ),
    ],
)
def test_optimizers_are_those_of_torch_bit_for_bit(
    changes: dict[str, Any], kind: Any, options: dict[str, Any]
) -> None:
    start = [torch.randn(5, 3), torch.randn(4), torch.randn(2)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    mine = make_optimizer(recipe(weight_decay=0.1, **changes), ours)
    torchs = kind(theirs, lr=0.01, weight_decay=0.1, **options)
    for step in range(4):
        for parameters in (ours, theirs):
            for parameter in parameters[: 2 if "fused" in changes else 3]:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
        mine.step(0.01)
        torchs.step()
        torchs.zero_grad()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    assert all(parameter.grad is None for parameter in ours)


def test_masters_in_float32_take_steps_that_bfloat16_can_not() -> None:
    # At 1, bfloat16 has steps of 2^-7; SGD's of 2^-10 are lost but for the masters.
    def trained(precision: str) -> tuple[Alone, nn.Linear]:
        model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        engine = Alone(
            model,
            {"weight": model.weight},
            recipe(precision=precision, optimizer="sgd"),
            SOLO,
            CPU,
        )
        engine.load({"weight": np.ones((1, 1))}.__getitem__)
        for _ in range(8):
            for last in (False, True):  # each pass has the gradient 1/2
                engine.begin(last=last)
                engine.backward(model.weight.sum() / 2, last=last)
            engine.step(2.0**-10)
        return engine, model

    for precision, expected in (("mixed", 1 - 2**-7), ("bfloat16", 1.0)):
        engine, model = trained(precision)
        assert dict(engine.tensors())["weight"].tolist() == [[expected]]
        assert model.weight.dtype == torch.bfloat16
        assert float(model.weight.detach()) == expected
        assert engine.words()["precision"] == precision


def test_a_gradient_that_is_no_number_moves_nothing() -> None:
    model = nn.Linear(3, 1, bias=False)
    engine = Alone(model, {"w": model.weight}, recipe(clip=1.0), SOLO, CPU)
    engine.load({"w": np.ones((1, 3))}.__getitem__)
    for wrong in (float("inf"), float("nan")):
        engine.backward(model.weight.sum() * wrong, last=True)
        assert engine.step(0.1) == float("inf")
    assert model.weight.tolist() == [[1, 1, 1]]
    assert engine.steps == 0
    engine.backward(model.weight.sum() * 2, last=True)  # what was wrong is forgotten
    assert engine.step(0.1) == pytest.approx(2 * 3**0.5)
    assert model.weight.tolist() == [pytest.approx([0.9] * 3)]


def test_the_norm_is_float32_whatever_the_gradient_is() -> None:
    model = nn.Linear(300, 1, dtype=torch.bfloat16)
    engine = Alone(
        model,
        dict(model.named_parameters()),
        recipe(precision="bfloat16", clip=1.0),
        SOLO,
        CPU,
    )
    engine.backward(model.weight.sum() + 2 * model.bias.sum(), last=True)
    assert engine.step(0.1) == pytest.approx(304**0.5, rel=1e-6)


@given(st.integers(0, 40), st.integers(1, 9))
def test_rows_are_divided_as_torch_chunks_them(rows: int, world: int) -> None:
    parts = [share(rows, rank, world) for rank in range(world)]
    assert parts[0][0] == 0
    assert parts[-1][1] == rows
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    chunks = [len(chunk) for chunk in torch.arange(rows).chunk(world)] if rows else []
    assert [stop - start for start, stop in parts if stop > start] == chunks


def test_messages_of_weights_are_of_one_dtype_and_not_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zero1, "BYTES", 32)
    wide, narrow = torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)
    parts = [wide, narrow, torch.zeros(9), wide, torch.zeros(0), wide, narrow]
    sizes = [[part.nbytes for part in group] for group in zero1._messages(parts)]
    assert sizes == [[8, 8], [16], [36], [16, 16]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {"a": np.arange(12, dtype=np.float32).reshape(4, 3), "b": np.float32([5])}
    write_arrays(tmp_path / "x.safetensors", values.items, BY_NAME["bfloat16"])
    return tmp_path


def test_rows_of_a_folder(folder: Path) -> None:
    with reader(folder) as tensors:
        read = FolderReader(tensors)
        part = read_rows(read, "a", (4, 3), (1, 3))
        assert part.dtype == np.float32
        assert part.tolist() == [[3, 4, 5], [6, 7, 8]]
        assert read_rows(read, "b", (1,), (0, 0)).shape == (0,)
        with pytest.raises(WorkerError, match=r"'a' is \[4, 3\], the model's is \[3\]"):
            read_rows(read, "a", (3,), (0, 1))
        # A reader of whole tensors serves, too.
        part = read_rows(tensors.read, "a", (4, 3), (3, 4))
        assert part.tolist() == [[9, 10, 11]]


def test_rows_of_what_has_no_axis() -> None:
    values = {"one": np.array(2.5, ml_dtypes.bfloat16)}
    assert read_rows(values.__getitem__, "one", (), (0, 1)).tolist() == [2.5]
    with pytest.raises(WorkerError, match="The state lacks the tensor 'two'"):
        read_rows(values.__getitem__, "two", (), (0, 1), of="state")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_ranks_of_a_node_take_its_devices_in_turn(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    taken: list[int] = []
    for name in ("cuda", "xpu"):
        devices = SimpleNamespace(
            is_available=lambda name=name: name == kind,
            device_count=lambda: 4,
            set_device=taken.append,
        )
        monkeypatch.setattr(torch, name, devices)
    found = [rank_device(Team(rank=9, world=12, local=local)) for local in (0, 3, 5)]
    assert [str(device) for device in found] == [f"{kind}:{i}" for i in (0, 3, 1)]
    assert taken == [0, 3, 1]


def test_layers_are_found_and_computed_twice() -> None:
    model = Llama(SHAPE, seed=1)
    assert layers_of(nn.Sequential(model)) == list(model.model.layers)
    assert layers_of(nn.Sequential(nn.Linear(2, 2), nn.ModuleList())) == []
    calls: list[int] = []
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    checkpoint_activations(model)
    ids = torch.arange(6)[None]
    scores = model(ids, torch.ones(1, 6, dtype=torch.bool))
    torch.autograd.backward(scores.sum())
    assert calls == [0, 1, 2, 2, 1, 0]
    with pytest.raises(SpecError, match="has no list of layers"):
        checkpoint_activations(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("sharding", "world", "words"),
    [
        ("none", 2, "2 ranks, which would train apart"),
        ("fsdp", 1, "the job has one rank"),
        ("zero", 2, "no sharding 'zero'"),
    ],
)
def test_sharding_that_does_not_fit(sharding: str, world: int, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        refuse(recipe(sharding=sharding), Team(world=world))
    assert caught.value.hint


LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


@pytest.fixture(autouse=True)
def _alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other ranks have what this one has."""
    monkeypatch.setattr(choice, "largest", lambda number, team: number)


def chosen(
    config: dict[str, Any] = LLAMA_7B, *, world: int = 64, **work: Any
) -> choice.Way:
    return way(
        config,
        CausalLMModelOptions(),
        CausalLMWorkOptions.model_validate(
            {"batch": 256, "micro_batch": 4, "sequence_length": 2048} | work
        ),
        "mixed",
        Team(world=world, ranks_per_node=4),
        torch.device("cuda"),
        own=False,
    )


@pytest.mark.parametrize(("gib", "sharding"), [(40, "fsdp"), (64, "zero1")])
def test_auto_asks_the_planner_what_fits(
    monkeypatch: pytest.MonkeyPatch, gib: int, sharding: str
) -> None:
    monkeypatch.setattr(choice, "memories", lambda *_: (gib << 30, 512 << 30))
    assert chosen().sharding == sharding
    # What is asked for is taken as it is.
    assert chosen(sharding="ddp", micro_batch=3) == choice.Way(
        sharding="ddp",
        micro_batch=3,
        activation_checkpointing=False,
        cpu_offload=False,
    )
    unheard = {"model_type": "unheard of"}
    assert chosen(unheard).sharding == "ddp"
    assert chosen(unheard, world=1).sharding == "none"


def test_auto_takes_smaller_passes_on_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the plan says: the same passes as `hansa plan --memory` has."""
    monkeypatch.setattr(choice, "memories", lambda *_: (160 << 30, 512 << 30))
    found = chosen(world=1, micro_batch=64)
    assert found.sharding == "none"
    assert 1 <= found.micro_batch < 64
    with pytest.raises(SpecError, match="cpu_offload is for fsdp") as caught:
        chosen(world=1, cpu_offload=True)
    assert caught.value.hint == "Leave cpu_offload out, or ask for more ranks."


def test_the_node_with_least_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "memories", lambda *_: (64 << 30, 512 << 30))
    monkeypatch.setattr(choice, "largest", lambda size, _: max(size, -(40 << 30)))
    assert chosen().sharding == "fsdp"


def test_auto_refuses_what_fits_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "memories", lambda *_: (1 << 30, 1 << 30))
    with pytest.raises(SpecError, match="does not fit the memory here") as caught:
        chosen(world=2)
    assert "choose a smaller model" in str(caught.value.hint)
