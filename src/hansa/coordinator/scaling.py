"""The plan of a scaling study: one order for each number of nodes, and no model made.

A pure state machine like any strategy, but none that a federation file can name: there
is one facility, and nothing is aggregated or evaluated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from hansa.core.commands import Assign, Command, Finish, WorkOrder
from hansa.core.events import (
    AssignmentFailed,
    Event,
    FacilityLost,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import ASSIGNMENT, assignment_id, update_ref


class NoOptions(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scaling:
    """Orders everything at once and ends when the last has come, or failed.

    How many jobs wait in the queue at a time is for the facility to say: what it
    refuses for now is asked again by the lane.

    Args:
        facility: Who is measured.
        nodes: Node counts.
        repeats: Orders for each of them.
        steps: Steps of an order.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions

    def __init__(
        self, facility: str, nodes: Sequence[int], repeats: int, steps: int
    ) -> None:
        self._facility = facility
        self._orders = [
            WorkOrder(
                assignment=assignment_id("train", count, facility, repeat),
                kind="train",
                round=count,
                steps=steps,
            )
            for repeat in range(1, repeats + 1)
            for count in nodes
        ]
        self._came: set[str] = set()
        self._failed: dict[str, str] = {}

    def handle(self, event: Event) -> list[Command]:
        """See `hansa.strategy.base.Strategy`."""
        match event:
            case VersionPublished():
                return [Assign(facility=self._facility, order=o) for o in self._orders]
            case UpdateArrived():
                self._came.add(event.assignment)
            case AssignmentFailed():
                self._failed[event.assignment] = event.reason
            case FacilityLost():
                for order in self._orders:
                    if order.assignment not in self._came:
                        self._failed.setdefault(order.assignment, event.reason)
            case _:
                return []
        if len(self._came | self._failed.keys()) < len(self._orders):
            return []
        return [Finish(outcome=self._outcome(), reason="All has been measured.")]

    def _outcome(self) -> str:
        if not self._came:
            return "failed"
        return "partial" if self._failed else "done"

    def holds(self) -> Collection[str]:
        """See `hansa.strategy.base.Strategy`; the updates' manifests are read last."""
        return [update_ref(name) for name in sorted(self._came)]

    def describe(self) -> Mapping[str, Any]:
        """See `hansa.strategy.base.Strategy`."""
        return {
            "came": sorted(self._came),
            "failed": dict(sorted(self._failed.items())),
        }


def nodes_and_repeat(assignment: str) -> tuple[int, int]:
    """Return what an order measures, by its name.

    Raises:
        ValueError: It is no order's name.
    """
    match = ASSIGNMENT.fullmatch(assignment)
    if match is None:
        raise ValueError(f"{assignment!r} is no assignment")
    return int(match[2]), int(match[4])
