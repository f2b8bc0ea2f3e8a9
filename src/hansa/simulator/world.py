"""What all facilities of a simulation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hansa.coordinator.core import Coordinator
from hansa.core.commands import WorkOrder
from hansa.core.events import EvaluationReported, Event
from hansa.simulator.heap import Heap
from hansa.simulator.memory import MemoryStore
from hansa.simulator.network import Network
from hansa.simulator.training.base import Training


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The clock, the coordinator, the store, the training and the lines.

    Attributes:
        emit: Takes events to the coordinator.
        late_binding: Whether a job takes its version when it starts, not before.
        hold: Seconds that training waits for the word to begin.
        retries: Jobs that count as tries of one assignment.
        patience: Seconds of silence after which a facility is lost.
    """

    heap: Heap
    core: Coordinator
    store: MemoryStore
    training: Training
    network: Network
    emit: Callable[[Event], None]
    late_binding: bool = True
    hold: float = 0.0
    retries: int = 3
    patience: float = 3600.0


def evaluation(
    world: World, facility: str, order: WorkOrder, version: int
) -> EvaluationReported:
    """Return a version's measured loss; not a number where nothing is trained."""
    losses = dict(world.training.losses(world.store.version(version)))
    mean = sum(losses.values()) / len(losses) if losses else float("nan")
    return EvaluationReported(
        at=world.heap.now,
        facility=facility,
        assignment=order.assignment,
        version=version,
        loss=mean,
        losses=losses,
    )
