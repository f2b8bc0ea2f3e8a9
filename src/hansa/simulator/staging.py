"""What lies in a simulated facility's mailbox, and what is on its way there."""

from __future__ import annotations

from collections.abc import Callable

from hansa.core.events import ModelStaged
from hansa.core.ids import state_of, version_of, version_ref
from hansa.simulator.training.base import Vector
from hansa.simulator.world import World

Then = Callable[[], None]


class Staging:
    """Moves versions and states to one facility, each once.

    Attributes:
        newest: The newest version that lies there; -1: none.
        weights: Its numbers.

    Args:
        facility: Name of the facility.
        world: What all facilities share.
    """

    def __init__(self, facility: str, world: World) -> None:
        self.newest = -1
        self.weights: Vector | None = None
        self._facility, self._world = facility, world
        self._waiting: dict[str, list[Then]] = {}

    def version(self, number: int, then: Then) -> None:
        """Call `then` once the version, or a newer one, lies there."""
        if number <= self.newest:
            then()
        elif self._is_first(version_ref(number), then):
            weights = self._world.store.version(number)

            def arrived(seconds: float) -> None:
                if number > self.newest:
                    self.newest, self.weights = number, weights
                self._tell(version_ref(number), number, "", seconds)

            self._send(arrived)

    def state(self, ref: str, then: Then) -> None:
        """Call `then` once a state, as ``state/correction-polaris/3``, lies there."""
        name, number = state_of(ref) or ("", 0)
        if self._is_first(ref, then):
            self._send(lambda seconds: self._tell(ref, number, name, seconds))

    def bindable(self) -> set[int]:
        """Return the versions that an order may yet bind, those on the way included."""
        coming = (version_of(ref) for ref in self._waiting)
        return {self.newest, *(number for number in coming if number is not None)}

    def _is_first(self, ref: str, then: Then) -> bool:
        """Tell whether nobody waits for that yet, and wait for it."""
        waiting = self._waiting.setdefault(ref, [])
        waiting.append(then)
        return len(waiting) == 1

    def _send(self, arrived: Callable[[float], None]) -> None:
        size = self._world.training.version_bytes
        self._world.network.send(self._facility, size, arrived)

    def _tell(self, ref: str, version: int, state: str, seconds: float) -> None:
        self._world.emit(
            ModelStaged(
                at=self._world.heap.now,
                facility=self._facility,
                version=version,
                bytes=self._world.training.version_bytes,
                seconds=seconds,
                state=state,
            )
        )
        for call in self._waiting.pop(ref):
            call()
