"""Every way to spread a model trains it as one process does, on the same data.

Tolerances: in float32 only the order of sums differs between numbers of ranks, which is
some units in the last place of a gradient; AdamW's steps have all the same length, so
the update, taken as one vector, differs by 1e-5 of itself at most. In "mixed" each
example's gradient is computed alone here, in bfloat16, and sums are in float32, so the
same holds. Where weights themselves are bfloat16, they are rounded after each step to 8
bits: an update of some 2^-7 of a weight then has few bits left, and differs by some
percent.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("peft")

import engine_ranks
from engine_ranks import BACKENDS, EVERYWHERE, ON_TWO

from hansa.core.rng import derive_seed

WRAPPERS = {
    "none": "Llama",
    "ddp": "DistributedDataParallel",
    "zero1": "DistributedDataParallel",
    "fsdp": "FSDPLlama",
}
CASES = [
    (world, sharding, name)
    for world in (4, 2)
    for sharding in BACKENDS
    for name in (*EVERYWHERE, *(ON_TWO if world == 2 else ()))
]


class Found:
    """What the ranks of all launches have written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told = {
            world: [
                json.loads((folder / f"found-{world}-{rank}.json").read_text())
                for rank in range(world)
            ]
            for world in (1, 2, 4)
        }

    def ranks(self, world: int, name: str) -> list[Any]:
        return [told[name] for told in self._told[world]]

    def tensors(self, world: int, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{world}-{name}.npz") as file:
            return dict(file)

    def before(self, name: str) -> dict[str, np.ndarray]:
        kind = name.partition("-")[0]
        kind = kind if kind in ("lora", "hub") else "plain"
        return engine_ranks.values(self.folder / kind)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, engine_ranks.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Found(folder)


pytestmark = pytest.mark.timeout(600)


def distance(
    one: dict[str, np.ndarray], other: dict[str, np.ndarray], before: dict[str, Any]
) -> float:
    """Return how far two updates are from each other, as a part of the second one."""
    assert list(one) == list(other)
    apart = sum(float(np.sum((one[n] - other[n]) ** 2.0)) for n in other)
    moved = sum(float(np.sum((other[n] - before[n]) ** 2.0)) for n in other)
    return float(np.sqrt(apart / moved))


@pytest.mark.parametrize(("world", "sharding", "name"), CASES)
def test_losses_and_update_are_those_of_one_process(
    found: Found, world: int, sharding: str, name: str
) -> None:
    (alone,) = found.ranks(1, f"none-{name}")
    ranks = found.ranks(world, f"{sharding}-{name}")
    rounded = name == "bfloat16"
    for rank in ranks:  # all of them know the loss over all
        assert rank["losses"] == pytest.approx(
            alone["losses"], rel=2e-3 if rounded else 1e-6
        )
    apart = distance(
        found.tensors(world, f"{sharding}-{name}"),
        found.tensors(1, f"none-{name}"),
        found.before(name),
    )
    assert apart < (0.05 if rounded else 1e-5)
    assert alone["losses"][0] != alone["losses"][1]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_is_in_force_is_told(found: Found, world: int) -> None:
    for sharding in BACKENDS if world > 1 else ("none",):
        for name, precision in (("float32", "float32"), ("lora-mixed", "mixed")):
            for rank in found.ranks(world, f"{sharding}-{name}"):
                words = rank["words"]
                assert words["sharding"] == sharding
                assert words["wrapper"] == WRAPPERS[sharding]
                assert words["precision"] == precision
                assert words["optimizer"] == "AdamW"
                assert words["device"] == "cpu"
    if world == 2:
        words = found.ranks(2, "fsdp-bfloat16")[0]["words"]
        assert words["precision"] == "bfloat16"
        words = found.ranks(2, "ddp-lora-bfloat16")[0]["words"]
        assert words["precision"] == "bfloat16"  # though adapters are float32


def test_weights_and_optimizer_stay_in_the_nodes_memory(found: Found) -> None:
    # On a processor there is nowhere else, but it is the same way through the library.
    offloaded, plain = (found.ranks(2, f"fsdp-{n}")[0] for n in ("offload", "mixed"))
    assert offloaded["words"] == plain["words"] | {"offload": "cpu"}
    assert offloaded["losses"] == plain["losses"]
    values = found.tensors(2, "fsdp-mixed")
    for name, value in found.tensors(2, "fsdp-offload").items():
        np.testing.assert_array_equal(value, values[name], err_msg=name)


def test_tokens_are_counted_over_all_ranks(found: Found) -> None:
    tokens = {
        found.ranks(world, f"{sharding}-lora")[0]["numbers"]["tokens"]
        for world in (1, 2, 4)
        for sharding in (BACKENDS if world > 1 else ("none",))
    }
    assert len(tokens) == 1
    assert min(tokens) > 0


def test_each_rank_evaluates_its_own_examples(found: Found) -> None:
    (alone,) = found.ranks(1, "none-float32")
    # Three examples of one task: on two ranks one has two of them, on four one none.
    for sharding in BACKENDS:
        first, second = (r["before"] for r in found.ranks(2, f"{sharding}-float32"))
        mean = (2 * first["upper"] + second["upper"]) / 3
        assert mean == pytest.approx(alone["before"]["upper"], rel=1e-6)
        four = [r["before"] for r in found.ranks(4, f"{sharding}-float32")]
        assert four[3] == {}
        mean = sum(losses["upper"] for losses in four[:3]) / 3
        assert mean == pytest.approx(alone["before"]["upper"], rel=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_reads_only_the_rows_that_it_holds(found: Found, world: int) -> None:
    whole = sum(value.size for value in found.before("plain").values())
    read = {
        sharding: [rank["read"] for rank in found.ranks(world, f"{sharding}-float32")]
        for sharding in BACKENDS
    }
    assert read["ddp"] == [whole] * world
    for sharding in ("zero1", "fsdp"):
        assert sum(read[sharding]) == whole
        assert max(read[sharding]) < 1.1 * whole / world


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", engine_ranks.SAVED)
def test_a_checkpoint_goes_on_on_other_ranks_and_back_ends(
    found: Found, world: int, name: str
) -> None:
    for sharding in BACKENDS if world > 1 else ("none",):
        went_on = found.ranks(world, f"{sharding}-{name}")[0]["losses"][1:]
        restored = found.ranks(world, f"{sharding}-{name}-restored")[0]
        assert len(restored) == 4  # its own, and those of three back ends on four ranks
        for losses in restored.values():
            assert losses == pytest.approx(went_on, rel=1e-6)
        assert restored[f"{world}-{sharding}"] == went_on  # to the last bit


def test_another_number_of_ranks_draws_anew(found: Found) -> None:
    # From the trainer's seed, 1, the step, also 1, and the rank.
    assert found.ranks(2, "seed") == [derive_seed(1, 1, rank) for rank in range(2)]


def test_the_optimizers_moments_alone(found: Found) -> None:
    (alone,), two = found.ranks(1, "moments"), found.ranks(2, "moments")
    # The version's weights, so its first loss; but AdamW's second step.
    first = found.ranks(1, "none-float32")[0]["losses"][0]
    assert alone["losses"][0] == pytest.approx(first, rel=1e-6)
    assert (alone["done"], two[0]["done"]) == (0, 0)
    before = found.before("plain")
    values = found.tensors(1, "moments")
    assert distance(found.tensors(2, "moments"), values, before) < 1e-5
    # The first step again: with moments m = 0.1 g and v = 0.001 g^2 of the same
    # gradient, the second is as long as the first, for each weight.
    name = "model.norm.weight"
    moved = np.abs(values[name] * 1.0 - before[name] * (1 - 1e-2 * 0.1))
    assert moved == pytest.approx(np.full_like(moved, 1e-2), rel=0.05)


def test_a_trainer_that_is_given_up_gives_its_memory_back(found: Found) -> None:
    assert all(
        found.ranks(2, f"{sharding}-freed") == [True] * 2 for sharding in BACKENDS
    )


def test_user_model_with_parts_frozen_unused_and_used_by_some(found: Found) -> None:
    used = [
        [rank["seldom"] for rank in found.ranks(2, f"{sharding}-user")]
        for sharding in BACKENDS
    ]
    assert all(first != second for first, second in used)
    (alone,) = found.ranks(1, "none-user")
    expected = found.tensors(1, "none-user")
    for world in (2, 4):
        for sharding in BACKENDS:
            ranks = found.ranks(world, f"{sharding}-user")
            assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            values = found.tensors(world, f"{sharding}-user")
            assert list(values) == list(expected)
            for name, value in values.items():
                if not name.startswith("norm.running"):  # those of rank 0's examples
                    np.testing.assert_allclose(
                        value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name
                    )
    assert not np.array_equal(expected["first.weight"], expected["frozen.weight"])
    drawn = engine_ranks.build(3, {}).model
    for name in ("unused.weight", "frozen.weight"):
        start = drawn.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(expected[name], start)


REFUSED = {
    "nothing": ("WORKER", r"lacks .*pieces-00000\.json"),
    "record": ("WORKER", r"lacks .*pieces-0000\d\.json, or it is damaged"),
    "arrays": ("WORKER", "can't be restored|failed on rank"),
    "optimizer": ("WORKER", "is of the optimizer AdamW, not of SGD"),
    "model": ("WORKER", "is only in one of them"),
    "dtype": ("WORKER", r"is float32\[270, 16\], the model's is bfloat16"),
    "ranks": ("SPEC_INVALID", "has one rank|has 2 ranks, which would train apart"),
    "offload": ("SPEC_INVALID", "cpu_offload is for fsdp"),
    "version": ("WORKER", "lacks the tensor|Loading the model failed on rank 1"),
    "not in force": ("WORKER", "fsdp is not in force: the model is a Distri"),
}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_on_all_ranks(
    found: Found, what: str, world: int
) -> None:
    if world == 1 and what == "not in force":
        return
    code, words = REFUSED[what]
    for told in found.ranks(world, f"refused-{what}"):
        assert told is not None
        assert told[0] == code
        assert re.search(words, told[1]), told[1]
