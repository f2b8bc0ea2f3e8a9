"""What the planner chooses, above all what the paper's authors chose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.planner.choice import MARGIN, Choice, Machine, Misfit, Wants, choose
from hansa.planner.known import must_know
from hansa.planner.memory import host_memory, predict
from hansa.planner.setting import Setting
from hansa.planner.shape import Adapters
from hansa.spec.profiles import load_profile

GB = 10**9
LLAMA = must_know("llama-2-7b")
WANTS = Wants(precision="mixed", sequence_length=512, batch=48, micro_batch=6)

PAPER = [
    ("alcf/polaris", 6, "fsdp"),
    ("nersc/perlmutter", 6, "fsdp"),
    ("nersc/perlmutter-80", 16, "zero1"),
    ("alcf/aurora", 8, "zero1"),
    ("olcf/frontier", 12, "zero1"),
]
"""Machine, micro batch and sharding (ZeRO-3 or ZeRO-1) of arXiv 2603.19544."""


def machine(
    memory: int, *, ranks: int = 8, each: int = 4, host: int | None = None
) -> Machine:
    """Return ranks whose devices, and whose nodes, have so many GB."""
    return Machine(
        device_bytes=memory * GB,
        ranks=ranks,
        ranks_per_node=each,
        host_bytes=None if host is None else host * GB,
    )


@pytest.mark.parametrize("nodes", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize(("profile", "micro_batch", "sharding"), PAPER)
def test_llama_is_spread_as_in_the_paper(
    profile: str, micro_batch: int, sharding: str, nodes: int
) -> None:
    node = load_profile(profile).node
    ranks = nodes * node.ranks
    wants = replace(WANTS, micro_batch=micro_batch, batch=2 * micro_batch * ranks)
    assert node.gpu_memory is not None
    there = Machine(
        device_bytes=node.gpu_memory,
        ranks=ranks,
        ranks_per_node=node.ranks,
        host_bytes=node.memory,
    )
    found = choose(LLAMA, wants, there)
    assert isinstance(found, Choice)
    assert found.sharding == sharding
    assert 4 <= found.micro_batch <= micro_batch
    assert not found.activation_checkpointing
    assert not found.cpu_offload
    assert found.parts.total <= (1 - MARGIN) * node.gpu_memory
    assert found.accumulation * found.micro_batch >= 2 * micro_batch


def test_the_least_that_fits_is_taken() -> None:
    """The same model in ever less memory."""

    def way(memory: int) -> tuple[str, int, bool, bool]:
        found = choose(LLAMA, WANTS, machine(memory, host=1000))
        assert isinstance(found, Choice)
        return (
            found.sharding,
            found.micro_batch,
            found.activation_checkpointing,
            found.cpu_offload,
        )

    assert way(200) == ("ddp", 6, False, False)
    assert way(80) == ("zero1", 6, False, False)
    assert way(40) == ("fsdp", 6, False, False)
    sharding, micro_batch, *savings = way(28)
    assert (sharding, savings) == ("fsdp", [False, False])
    assert micro_batch < 4
    assert way(20) == ("fsdp", 6, True, False)
    assert way(12)[2:] == (True, True)


def test_the_reason_is_the_next_cheaper_way() -> None:
    found = choose(LLAMA, WANTS, machine(40))
    assert isinstance(found, Choice)
    other = predict(LLAMA, _setting(sharding="zero1", accumulation=1))
    assert found.why == (
        f"zero1 would take {other.total / GB:.1f} GB with the same passes; 36.8 GB "
        "may be used."
    )


def _setting(*, sharding: str, accumulation: int) -> Setting:
    return Setting(
        sharding=sharding,
        precision="mixed",
        optimizer="adamw",
        micro_batch=6,
        sequence_length=512,
        ranks=8,
        accumulation=accumulation,
    )


def test_one_rank_shares_with_nobody() -> None:
    found = choose(must_know("smollm2"), WANTS, machine(40, ranks=1, each=1))
    assert isinstance(found, Choice)
    assert (found.sharding, found.micro_batch, found.accumulation) == ("none", 6, 8)
    # Offloading is fsdp's, which needs others.
    offloading = replace(WANTS, cpu_offload=True)
    assert (
        choose(must_know("smollm2"), offloading, machine(40, ranks=1, each=1)) == found
    )


def test_a_step_is_divided_among_the_ranks() -> None:
    """48 examples over 32 ranks: two at most, in one pass."""
    found = choose(must_know("smollm2"), WANTS, machine(40, ranks=32, each=4))
    assert isinstance(found, Choice)
    assert (found.sharding, found.micro_batch, found.accumulation) == ("ddp", 2, 1)


def test_what_does_not_fit_says_what_would() -> None:
    """70 billion parameters on eight GPUs whose nodes have little memory."""
    wants = replace(WANTS, batch=64, micro_batch=8)
    found = choose(must_know("llama-2-70b"), wants, machine(40, host=256))
    assert isinstance(found, Misfit)
    assert "Offloading takes" in found.why
    nodes = next(one for one in found.remedies if "nodes" in one)
    count = int(nodes.split()[0])
    more = choose(
        must_know("llama-2-70b"),
        replace(wants, batch=64 * count // 2),
        machine(40, ranks=4 * count, host=256),
    )
    assert isinstance(more, Choice)
    assert "LoRA (model.options.lora: {rank: 16})" in found.remedies


def test_each_remedy_of_a_fixed_way_does_fit() -> None:
    wants = replace(WANTS, sharding="fsdp", batch=128, micro_batch=16)
    found = choose(LLAMA, wants, machine(40))
    assert isinstance(found, Misfit)
    assert found.why.startswith("Even with fsdp over 8 ranks and passes of 16 examples")
    assert found.remedies[0] == "micro_batch: 4"
    for change in (
        replace(wants, micro_batch=4),
        replace(wants, activation_checkpointing=True),
        replace(wants, sharding="auto"),
    ):
        assert isinstance(choose(LLAMA, change, machine(40)), Choice)
    assert {"activation_checkpointing: true", "sharding: auto"} <= set(found.remedies)
    assert "sequence_length: 128" in found.remedies
    short = replace(wants, sequence_length=128)
    assert isinstance(choose(LLAMA, short, machine(40)), Choice)


def test_offloading_needs_the_memory_of_the_node() -> None:
    wants = replace(WANTS, sharding="fsdp", cpu_offload=True, micro_batch=2)
    assert isinstance(choose(LLAMA, wants, machine(16)), Choice)
    assert isinstance(choose(LLAMA, wants, machine(16, host=40)), Misfit)
    setting = replace(_setting(sharding="fsdp", accumulation=1), cpu_offload=True)
    # float32 weights, gradients and two moments, an eighth on each rank
    assert host_memory(LLAMA, setting) == 3 * -(-4 * LLAMA.parameters // 8) + (
        4 * LLAMA.parameters // 8
    )


def test_adapters_alone_need_no_sharding() -> None:
    thin = LLAMA.with_adapters(Adapters(rank=16, targets=("q_proj", "v_proj")))
    found = choose(thin, WANTS, machine(40))
    assert isinstance(found, Choice)
    assert found.sharding == "ddp"
