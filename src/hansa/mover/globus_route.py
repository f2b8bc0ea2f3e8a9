"""The tasks of Globus Transfer from a facility to the server, or back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from hansa.core.errors import HansaError
from hansa.mover import globus_queue
from hansa.mover import globus_words as words
from hansa.mover.globus_service import Accepted, Item, Order, Service, Spot
from hansa.mover.globus_words import TaskView


class ServiceRoute:
    """See `hansa.mover.globus_queue.Route`.

    Args:
        service: Globus Transfer.
        direction: ``put`` or ``get``.
        source: Where the files are.
        target: Where they go.
        label: What people see of its tasks.
        deadline: Seconds that a task may take.
    """

    def __init__(
        self,
        service: Service,
        direction: str,
        *,
        source: Spot,
        target: Spot,
        label: str,
        deadline: float,
    ) -> None:
        self.direction = direction
        self._service = service
        self._source, self._target = source, target
        self._label, self._deadline = label, deadline

    async def ticket(self) -> str:
        """Return a new submission id."""
        return await self._service.ticket()

    async def submit(self, ticket: str, items: tuple[Item, ...]) -> Accepted:
        """Submit; a second time under the same id changes nothing."""
        return await self._service.submit(
            Order(
                ticket=ticket,
                source=self._source,
                target=self._target,
                items=items,
                label=self._label,
                deadline=self._deadline,
            )
        )

    async def look(self, task: str) -> TaskView:
        """Tell how a task stands."""
        return await self._service.look(task)

    async def sent(self, task: str) -> dict[str, int]:
        """Return the sizes of the files that a task sent, by their target."""
        return await self._service.sent(task)

    async def failure(
        self, task: str, view: TaskView, places: Collection[str]
    ) -> HansaError:
        """Return what it means that a task failed."""
        events = await self._service.events(task)
        what = ", ".join(sorted(places))
        return words.failed(
            view, events, f"{what} from {self._source.name} to {self._target.name}"
        )

    async def cancel(self, task: str) -> None:
        """Cancel a task; one that is over stays as it is."""
        await self._service.cancel(task)

    async def find(self, ticket: str) -> str | None:
        """Return the task that was submitted under an id, if there is one."""
        return await self._service.find(ticket)

    async def run(self, item: Item, place: str) -> None:
        """Have one small file moved, and wait for it; nobody notes it.

        Args:
            item: The file.
            place: What it is of, for messages.

        Raises:
            HansaError: What the service told of its failure.
        """
        accepted = await self.submit(await self.ticket(), (item,))
        wait = globus_queue.FIRST_S
        while not (view := await self.look(accepted.task)).over:
            await asyncio.sleep(wait)
            wait = min(wait * globus_queue.SLOWER, globus_queue.EVERY_S)
        if view.status == "FAILED":
            raise await self.failure(accepted.task, view, (place,))
