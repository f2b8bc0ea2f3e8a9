"""Small federations that train in simulation."""

from __future__ import annotations

from typing import Any

from hansa.simulator.training.base import LocalWork
from hansa.spec.federation import FederationSpec
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump


def federation(
    training: dict[str, Any],
    facilities: dict[str, dict[str, Any]] | None = None,
    **more: Any,
) -> FederationSpec:
    """Return a federation of simulated facilities (a, b, c, if not told).

    Args:
        training: `simulation.training`.
        facilities: What each has of its own.
        more: Other keys of the file; `work` is that of all facilities.
    """
    plan = {
        "name": "small",
        "model": {"trainer": "softmax", "source": "zeros"},
        "task": "digits",
        "strategy": "fedavg",
        "stop": {"rounds": 1},
        "defaults": {
            "gateway": "simulated",
            "mover": "simulated",
            "work": {"steps": 10, "batch": 4, "lr": 0.1, **more.pop("work", {})},
        },
        "facilities": facilities or {"a": {}, "b": {}, "c": {}},
        "simulation": {"training": training},
        **more,
    }
    return federation_from_text(dump(plan))


def order(steps: int, number: int = 1, **more: Any) -> LocalWork:
    """Return the work of an order of facility a."""
    name = f"train-{number:04d}-a-1"
    return LocalWork(assignment=name, round=number, steps=steps, **more)
