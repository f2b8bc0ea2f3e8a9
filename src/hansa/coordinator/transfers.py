"""What services move for a run stands in its journal before they are asked to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hansa.coordinator.core import Coordinator
from hansa.core.events import Event, TransferEnded, TransferSubmitted
from hansa.mover.base import Ended, Submission


class JournaledTransfers:
    """The `TransferLog` of one facility in a run.

    Args:
        facility: Its name.
        core: The core, which remembers what is open.
        noted: Journals an event and returns when it is on the disk.
    """

    def __init__(
        self,
        facility: str,
        core: Coordinator,
        noted: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._facility = facility
        self._core = core
        self._noted = noted

    def open(self) -> tuple[Submission, ...]:
        """See `TransferLog.open`."""
        return tuple(
            Submission(
                ticket=event.ticket, direction=event.direction, places=event.places
            )
            for event in self._core.transfers(self._facility)
        )

    async def submitted(self, submission: Submission) -> None:
        """See `TransferLog.submitted`."""
        await self._noted(
            TransferSubmitted(
                at=0.0,
                facility=self._facility,
                ticket=submission.ticket,
                direction=submission.direction,
                places=submission.places,
            )
        )

    async def ended(self, ended: Ended) -> None:
        """See `TransferLog.ended`."""
        await self._noted(
            TransferEnded(
                at=0.0,
                facility=self._facility,
                ticket=ended.ticket,
                outcome=ended.outcome,
                reason=ended.reason,
                bytes=ended.bytes,
                seconds=ended.seconds,
                faults=ended.faults,
            )
        )

    @property
    def closed(self) -> bool:
        """See `TransferLog.closed`; a run that was only interrupted is resumed."""
        return bool(self._core.outcome)
