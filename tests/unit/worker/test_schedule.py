"""Learning rates over rounds: by hand, and against transformers."""

from __future__ import annotations

from typing import Any

import pytest

from hansa.worker.llm_options import ScheduleOptions
from hansa.worker.trainers.schedule import factor


def of(**options: Any) -> ScheduleOptions:
    return ScheduleOptions.model_validate({"shape": "linear", **options})


def test_by_hand() -> None:
    assert [factor(None, position) for position in (0, 10**6)] == [1.0, 1.0]
    line = of(steps=8, warmup=4, least=0.2)
    found = [factor(line, position) for position in range(10)]
    # Up in quarters; then from 1 to 0.2 in 4 steps of 0.2, where it stays.
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert found == pytest.approx(expected)
    wave = of(shape="cosine", steps=4)
    # (1 + cos) / 2 of 0, 45, 90, 135 and 180 degrees.
    expected = [1.0, 0.8535533906, 0.5, 0.1464466094, 0.0]
    assert [factor(wave, p) for p in range(5)] == pytest.approx(expected)
    assert factor(of(steps=3, warmup=9), 9) == 1.0  # nothing but warm-up


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_it_is_that_of_transformers(shape: str) -> None:
    """Theirs is a step behind in the warm-up: its first step has no rate at all."""
    pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    from torch.nn import Parameter
    from torch.optim import SGD

    optimizer = SGD([Parameter()], lr=1.0)
    make = getattr(optimization, f"get_{shape}_schedule_with_warmup")
    theirs = make(optimizer, num_warmup_steps=5, num_training_steps=20).lr_lambdas[0]
    ours = of(shape=shape, steps=20, warmup=5)
    for position in range(5):
        assert factor(ours, position) == pytest.approx(theirs(position + 1))
    for position in range(5, 21):  # after its end their cosine rises again
        assert factor(ours, position) == pytest.approx(theirs(position))
