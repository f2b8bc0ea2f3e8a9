"""DeepSpeed's ZeRO behind the engine's protocol, with real ranks over gloo.

What they have to equal is computed here by plain torch, one process, all examples at
once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepspeed_ranks as ranks
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from hansa.core.errors import PluginError
from hansa.worker.engine.base import Recipe
from hansa.worker.engine.make import make_engine
from hansa.worker.team import Team

pytestmark = pytest.mark.timeout(300)

CLOSE = {"rtol": 0, "atol": 2e-6}  # rounding in float32; weights move by 1e-2 a step
LOOSE = {"rtol": 0, "atol": 2.5e-2}  # bfloat16 has 8 bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one launch that has done all cases."""
    folder = tmp_path_factory.mktemp("deepspeed")
    script = Path(ranks.__file__)
    home = folder / "home"
    home.mkdir()
    paths = os.pathsep.join([str(script.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, script, folder],
        env={**os.environ, "PYTHONPATH": paths, "HOME": str(home)},
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == ""
    assert not any(home.rglob("*.so")), "an operator was compiled"
    return folder


def found(folder: Path, world: int, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"found-{world}-{rank}.json").read_text())


def tensors(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


class Plain:
    """One process of plain torch that takes each step's examples at once."""

    def __init__(self, clip: float | None = ranks.CLIP) -> None:
        self.net = ranks.net()
        self.clip = clip
        with torch.no_grad():
            for name, value in ranks.version().items():
                dict(self.net.state_dict(keep_vars=True))[name].copy_(
                    torch.from_numpy(np.asarray(value))
                )
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=ranks.LR, weight_decay=ranks.DECAY
        )

    def steps(self, numbers: range | list[int]) -> list[float]:
        figures = []
        for number in numbers:
            loss = ranks.losses_of(self.net, number, range(ranks.OF)).mean()
            loss.backward()
            largest = self.clip or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(self.trained, largest)
            self.optimizer.step()
            self.optimizer.zero_grad()
            figures += [float(loss.detach()), float(norm)]
        return figures

    def tensors(self) -> dict[str, np.ndarray]:
        return {n: t.detach().numpy() for n, t in ranks.federated(self.net).items()}


def check(
    folder: Path, world: int, name: str, plain: Plain, figures: list[float], **near: Any
) -> None:
    assert_allclose(found(folder, world)[name]["figures"], figures, **near)
    trained = tensors(folder, f"{world}-{name}")
    assert list(trained) == sorted(trained)
    expected = plain.tensors()
    assert trained.keys() == expected.keys()
    for key, value in trained.items():
        assert_allclose(value, expected[key], err_msg=f"{name} {key}", **near)
        frozen = key == "table" or key.startswith("frozen")
        moved = np.abs(value - ranks.version()[key]).max()
        assert moved < 4e-3 if frozen else moved > 1e-2, key


@pytest.mark.parametrize("stage", ranks.STAGES)
def test_losses_norms_and_weights_are_those_of_one_process(
    folder: Path, stage: str
) -> None:
    for case, near in (("float32", CLOSE), ("mixed", LOOSE), ("twice", CLOSE)):
        plain = Plain(clip=None if case == "twice" else ranks.CLIP)
        figures = plain.steps(range(ranks.STEPS))
        assert min(figures[1::2]) > ranks.CLIP  # it is clipped where it is asked for
        check(folder, 2, f"{stage}-{case}", plain, figures, **near)
        if case != "twice":  # three ranks cut tensors in the middle of a row
            check(folder, 3, f"{stage}-{case}-saved", plain, figures[4:], **near)


def test_what_is_in_force_is_told(folder: Path) -> None:
    partitioners = {
        "deepspeed-1-float32": "DeepSpeedZeroOptimizer",
        "deepspeed-1-mixed": "BF16_Optimizer",
        "deepspeed-2-mixed": "DeepSpeedZeroOptimizer",
        "deepspeed-3-mixed": "DeepSpeedZeroOptimizer_Stage3",
    }
    for name, partitioner in partitioners.items():
        stage, _, precision = name.rpartition("-")
        assert found(folder, 2)[name]["words"] == {
            "sharding": stage,
            "wrapper": "DeepSpeedEngine",
            "partitioner": partitioner,
            "optimizer": "AdamW",
            "precision": precision,
            "device": "cpu",
        }


@pytest.mark.parametrize(
    "case",
    [
        "2 deepspeed-1 3-deepspeed-3",
        "2 deepspeed-2 3-fsdp",
        "2 deepspeed-3 3-deepspeed-2",
        "2 fsdp 3-deepspeed-1",
        "1 none 2-deepspeed-2",
        "1 none 3-deepspeed-3",
    ],
)
def test_checkpoints_go_to_other_back_ends_and_numbers_of_ranks(
    folder: Path, case: str
) -> None:
    world, sharding, saved = case.split()
    plain = Plain()
    figures = plain.steps(range(ranks.STEPS))[4:]
    check(
        folder, int(world), f"{sharding}-from-{saved}-float32", plain, figures, **CLOSE
    )


@pytest.mark.parametrize(
    ("world", "stage", "saved"),
    [
        (2, "deepspeed-1", "2-deepspeed-1-mixed"),
        (2, "deepspeed-2", "3-deepspeed-3-mixed"),
        (3, "deepspeed-3", "3-deepspeed-1-mixed"),
    ],
)
def test_masters_of_mixed_precision_survive(
    folder: Path, world: int, stage: str, saved: str
) -> None:
    again = tensors(folder, f"{world}-{stage}-from-{saved}")
    there, _, rest = saved.partition("-")
    straight = tensors(folder, f"{there}-{rest}-saved")
    exact = world == 2 and saved.startswith("2")
    for key, value in again.items():
        near = {"rtol": 0, "atol": 0} if exact else LOOSE
        assert_allclose(value, straight[key], err_msg=key, **near)
    # The float32 weights are no numbers of bfloat16.
    bits = straight["embed.weight"].view(np.uint32)
    assert (bits & 0xFFFF).any()


def test_moments_alone_go_into_another_version(folder: Path) -> None:
    plain, other = Plain(), Plain()
    plain.steps(range(2))
    state = plain.optimizer.state_dict()
    other.optimizer.load_state_dict(state)
    steps, *figures = found(folder, 2)["moments"]["figures"]
    assert steps == 0
    # AdamW goes on counting: that it starts from zeros is made up for already.
    for path in (folder / "saved-moments").glob("pieces-*.json"):
        saved = json.loads(path.read_text())
        assert saved["steps"] == 1
        assert {one["step"] for one in saved["tensors"].values()} <= {3.0, None}
    assert_allclose(figures, other.steps([0]), **CLOSE)
    for key, value in tensors(folder, "2-moments").items():
        assert_allclose(value, other.tensors()[key], err_msg=key, **CLOSE)


def test_a_rank_reads_the_rows_that_it_holds(folder: Path) -> None:
    shares = [found(folder, 2, rank)["read"] for rank in (0, 1)]
    for read, whole in shares:
        assert read < 0.75 * whole  # the frozen tensors are read by all
    assert sum(read for read, _ in shares) >= shares[0][1]


def test_frozen_weights_are_filled_part_by_part(folder: Path) -> None:
    value = np.arange(49).reshape(7, 7)
    assert_allclose(found(folder, 2)["filled"], value, rtol=0, atol=0)


def test_an_engine_that_is_not_used_any_more_leaves_no_memory(folder: Path) -> None:
    for rank in (0, 1):
        for stage in ranks.STAGES:
            gone = found(folder, 2, rank)[f"left-{stage}"]
            assert len(gone) >= 3
            assert all(gone), stage


def test_what_it_can_not_do_is_refused_on_all_ranks(folder: Path) -> None:
    parts = {
        "sgd": ("SPEC_INVALID", "deepspeed-1 does not go with work.optimizer: sgd"),
        "bfloat16": ("SPEC_INVALID", "precision bfloat16 without float32 weights"),
        "adapter": ("SPEC_INVALID", "work.lora_rank"),
        "single": ("SPEC_INVALID", "a single number (scale)"),
        "correction": ("SPEC_INVALID", "can't add a proximal term"),
        "lacking": ("WORKER", "on rank 1"),
    }
    for name, (code, part) in parts.items():
        said = found(folder, 2)[f"refused-{name}"]
        assert said[0] == code
        assert part in said[1]
        assert f"refused-{name}" in found(folder, 2, 1)
    assert "'scale'" in found(folder, 2, 1)["refused-lacking"][1]
    assert found(folder, 2)["diverged"]["figures"] == [float("inf"), 0]
    for key, value in tensors(folder, "2-diverged").items():
        assert_allclose(value, ranks.version()[key], err_msg=key, rtol=0, atol=0)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    net = ranks.net()
    recipe = Recipe(sharding="deepspeed-2", precision="float32", optimizer="adamw")
    team = Team(world=2)
    with pytest.raises(PluginError, match="DeepSpeed") as caught:
        make_engine(net, ranks.federated(net), recipe, team, torch.device("cpu"))
    assert 'pip install "hansa[deepspeed]"' in str(caught.value.hint)
