"""What is known of a strategy before anything is spent."""

from __future__ import annotations

from typing import Any

import pytest

from hansa.coordinator.setup import first_order, make_coordinator
from hansa.core.errors import SpecError
from hansa.spec.federation import FederationSpec


def spec(
    trainer: str, work: dict[str, Any], strategy: str = "scaffold", **options: Any
) -> FederationSpec:
    facility = {
        "gateway": {"type": "local"},
        "mover": {"type": "posix"},
        "work": {"steps": 8, **work},
    }
    return FederationSpec.model_validate(
        {
            "name": "x",
            "model": {"trainer": trainer, "source": "zeros"},
            "task": {"name": "digits"},
            "strategy": {"name": strategy, **options},
            "stop": {"rounds": 2},
            "facilities": {
                "anvil": {**facility, "work": {"steps": 8}},
                "borah": facility,
            },
        }
    )


def test_scaffold_needs_plain_sgd_everywhere() -> None:
    make_coordinator(spec("softmax", {"lr": 0.1}))
    with pytest.raises(SpecError, match="scaffold needs plain SGD, but borah") as error:
        make_coordinator(spec("softmax", {"momentum": 0.9}))
    assert "work.momentum: 0" in str(error.value.hint)
    make_coordinator(spec("softmax", {"momentum": 0.9}, "fedprox"))


def test_tide_goes_with_any_optimizer() -> None:
    for work in ({"lr": 0.1}, {"momentum": 0.9}):
        make_coordinator(spec("softmax", work, "tide"))


@pytest.mark.parametrize(
    ("trainer", "remedy"),
    [("torch-module", "work.optimizer: sgd"), ("causal-lm", "another strategy")],
)
def test_scaffold_does_not_go_with_adaptive_optimizers(
    trainer: str, remedy: str
) -> None:
    with pytest.raises(SpecError, match="anvil trains with another") as error:
        make_coordinator(spec(trainer, {}))
    assert remedy in str(error.value.hint)


def test_the_first_order_is_the_strategys_own() -> None:
    order = first_order(spec("softmax", {}, "fedcompass", min_steps=3), "borah")
    assert (order.assignment, order.steps) == ("train-0001-borah-1", 3)
    assert first_order(spec("softmax", {}, "fedprox", mu=0.2), "anvil").proximal == 0.2


def test_a_buffer_larger_than_the_federation_is_refused() -> None:
    with pytest.raises(SpecError, match="larger than the federation"):
        make_coordinator(spec("softmax", {}, "fedbuff", k=3))
