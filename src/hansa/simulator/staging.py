"""What lies in a simulated facility's mailbox, and what is on its way there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hansa.core.events import ModelStaged
from hansa.core.ids import state_of
from hansa.simulator.order import Order
from hansa.simulator.training.base import Vector
from hansa.simulator.world import World

Then = Callable[[], None]


class Staging:
    """Moves versions and states to one facility, each once, one after the other.

    A version is asked for by its number, or as the newest of the moment when its turn
    comes: what was published and replaced meanwhile is never sent.

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
        self._versions: set[int] = set()
        self._states: set[str] = set()
        self._line: deque[tuple[Order | None, str, Then | None]] = deque()
        self._moving = False
        self._coming = -1

    def stage(self, order: Order, then: Then) -> None:
        """Call `then` once all that an order needs lies there; never if it is over."""
        control = order.what.control
        if control:
            self._ask(order, "", lambda: self._ask(order, control, then))
        else:
            self._ask(order, "", then)

    def send_ahead(self) -> None:
        """Send the newest version, for orders that could still bind it."""
        if not any(order is None for order, _, _ in self._line):
            self._ask(None, "", None)

    def bindable(self) -> set[int]:
        """Return the versions that an order may yet bind, that on its way included."""
        return {self.newest, self._coming}

    def _ask(self, order: Order | None, state: str, then: Then | None) -> None:
        """Wait in line for a state, or for the version of an order."""
        self._line.append((order, state, then))
        self._go_on()

    def _go_on(self) -> None:
        while self._line and not self._moving:
            order, state, then = self._line.popleft()
            if order is not None and order.over:
                continue
            number = None if order is None else order.what.version
            if number is None:
                number = self._world.core.newest
            if state and state not in self._states:
                self._send_state(state, then)
            elif not state and number not in self._versions:
                self._send_version(number, then)
            elif then is not None:
                then()

    def _send_version(self, number: int, then: Then | None) -> None:
        weights = self._world.store.version(number)
        self._coming = number

        def arrived(seconds: float) -> None:
            self._versions.add(number)
            self._coming = -1
            if number > self.newest:
                self.newest, self.weights = number, weights
            self._arrived(number, "", seconds, then)

        self._send(arrived)

    def _send_state(self, ref: str, then: Then | None) -> None:
        name, number = state_of(ref) or ("", 0)

        def arrived(seconds: float) -> None:
            self._states.add(ref)
            self._arrived(number, name, seconds, then)

        self._send(arrived)

    def _send(self, arrived: Callable[[float], None]) -> None:
        self._moving = True
        size = self._world.training.version_bytes
        self._world.network.send(self._facility, size, arrived)

    def _arrived(
        self, version: int, state: str, seconds: float, then: Then | None
    ) -> None:
        self._moving = False
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
        if then is not None:
            then()
        self._go_on()
