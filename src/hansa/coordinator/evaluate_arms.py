"""The models that a run's own is compared with, as small plans derived from the run's.

**Local**: what a facility would have without the federation. It trains alone, from the
same version 0, as many rounds and steps as it delivered in the run, over the very same
batches; its own updates are applied whole, in float32.

**Central**: what training would give if all data lay in one place. One facility that
may read all groups does as many steps on all of them as all facilities did together,
corrected for the size of their batches, in as many rounds as the run had. A schedule of
its learning rate is made longer by as much.

All rounds of such a model have equally many steps. Where its steps can't be divided so,
the number of rounds gives way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hansa.core.errors import UsageError
from hansa.core.events import Event, UpdateArrived
from hansa.spec.federation import FederationSpec, lock_text
from hansa.spec.load import federation_from_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a facility's updates in a run were made with.

    Attributes:
        updates: How many came.
        steps: Optimizer steps of all of them.
        samples: Training examples of all of them.
    """

    updates: int = 0
    steps: int = 0
    samples: int = 0

    def __add__(self, other: Share) -> Share:
        """Return the sum."""
        return Share(
            updates=self.updates + other.updates,
            steps=self.steps + other.steps,
            samples=self.samples + other.samples,
        )


def shares(events: Iterable[Event]) -> dict[str, Share]:
    """Return by facility what its updates were made with."""
    found: dict[str, Share] = {}
    for event in events:
        if isinstance(event, UpdateArrived):
            one = Share(updates=1, steps=event.steps, samples=event.samples)
            found[event.facility] = found.get(event.facility, Share()) + one
    return found


def local_plan(spec: FederationSpec, facility: str, share: Share) -> FederationSpec:
    """Return the plan of one facility that trains alone.

    Args:
        spec: The run's plan.
        facility: Its name there.
        share: What it did in the run.
    """
    rounds, steps = _divided(share.steps, share.updates)
    return _alone(spec, facility, rounds=rounds, steps=steps)


def central_plan(
    spec: FederationSpec, facility: str, did: Mapping[str, Share], rounds: int
) -> FederationSpec:
    """Return the plan of one facility that trains on the data of all.

    Args:
        spec: The run's plan.
        facility: Where all data may be read.
        did: What each facility did.
        rounds: Versions that the run made.

    Raises:
        UsageError: The plan does not say by name what a facility trains on.
    """
    batch = int(spec.facilities[facility].work.options["batch"])
    samples = sum(share.samples for share in did.values())
    rounds, steps = _divided(round(samples / batch), rounds)
    usual = did[facility].steps if facility in did else _mean_steps(did)
    return _alone(
        spec,
        facility,
        rounds=rounds,
        steps=steps,
        data=all_groups(spec),
        longer=rounds * steps / usual,
    )


def _divided(steps: int, rounds: int) -> tuple[int, int]:
    """Return rounds and steps of each that come to `steps`, as nearly as can be."""
    each = max(1, round(steps / rounds))
    return max(1, round(steps / each)), each


def _mean_steps(did: Mapping[str, Share]) -> float:
    return fmean(share.steps for share in did.values())


def all_groups(spec: FederationSpec) -> list[str]:
    """Return the groups of data that the facilities train on, each once.

    Raises:
        UsageError: The plan does not say by name what a facility trains on.
    """
    groups: dict[str, None] = {}
    for name, facility in spec.facilities.items():
        if facility.data is None:
            raise UsageError(
                f"{name} trains on all data that it has, and what that is only the "
                "facility knows.",
                hint=f"Name its groups in facilities.{name}.data.",
            )
        groups |= dict.fromkeys(facility.data)
    return list(groups)


def measuring_plan(spec: FederationSpec) -> FederationSpec:
    """Return the plan of a run that only measures a model, where the run did that."""
    data = spec.model_dump(mode="json")
    on = list(spec.evaluation.on)
    plain = {"linger": 0.0, "queue_ahead": 0.0}
    data["facilities"] = {name: data["facilities"][name] | plain for name in on}
    return _remade(data, on, rounds=1)


def _alone(
    spec: FederationSpec,
    facility: str,
    *,
    rounds: int,
    steps: int,
    data: list[str] | None = None,
    longer: float = 1.0,
) -> FederationSpec:
    plan = spec.model_dump(mode="json")
    one = plan["facilities"][facility]
    before = one["work"]["steps"]
    one["work"]["steps"] = steps
    if schedule := one["work"].get("schedule"):  # it would end long before the training
        schedule["steps"] = max(1, round(schedule["steps"] * longer))
        schedule["warmup"] = round(schedule["warmup"] * longer)
    one["job"]["time"] *= max(1.0, steps / before)
    one["data"] = one["data"] if data is None else data
    plan["facilities"] = {facility: one}
    plan["update"] = {"dtype": "float32", "compress": plan["update"]["compress"]}
    return _remade(plan, [facility], rounds=rounds)


def _remade(
    plan: Mapping[str, Any], evaluators: list[str], rounds: int
) -> FederationSpec:
    made = FederationSpec.model_validate(
        {
            **plan,
            "strategy": {"name": "fedavg"},
            "stop": {"rounds": rounds},
            "evaluation": {"on": evaluators, "local": False},
            "start_together": None,
            "simulation": None,
        }
    )
    # As it is read back from the run's folder: with all defaults of the strategy.
    return federation_from_text(lock_text(made))
