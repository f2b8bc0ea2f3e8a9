"""What a mover is to a lane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from hansa.core.errors import TransferError, UsageError
from hansa.core.files import FileRecords
from hansa.core.remarks import Remark

MANIFEST = "manifest.json"
"""Travels beside the files that it lists; it does not list itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What one transfer did: bytes that went over, and seconds that it took.

    `bytes` is 0 when everything was there already.
    """

    bytes: int
    seconds: float


class Damaged(TransferError):
    """What lies at the other end is not what its manifest promises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How a transfer goes, for people.

    Attributes:
        bytes: Moved so far.
        total: To be moved; 0: not known.
        rate: Bytes per second, as whoever moves them counts.
        faults: Troubles so far that were mended without us.
        status: The service's own word, as ``PERMISSION_DENIED``; empty: all is well.
    """

    bytes: int
    total: int = 0
    rate: float = 0.0
    faults: int = 0
    status: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a service was asked to move, and may still be moving.

    Attributes:
        ticket: Under one ticket the service carries nothing out twice.
        direction: ``put`` or ``get``.
        places: The directories in the mailbox.
    """

    ticket: str
    direction: str
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a submission ended; as the event `TransferEnded`."""

    ticket: str
    outcome: str
    reason: str = ""
    bytes: int = 0
    seconds: float = 0.0
    faults: int = 0


class TransferLog(Protocol):
    """The durable memory of a mover that leaves its work to a service."""

    def open(self) -> tuple[Submission, ...]:
        """Return what was submitted and has not ended, the oldest first."""
        ...

    async def submitted(self, submission: Submission) -> None:
        """Return once it is on the disk that this is going to be submitted."""
        ...

    async def ended(self, ended: Ended) -> None:
        """Return once it is on the disk that a submission is over."""
        ...

    @property
    def closed(self) -> bool:
        """Whether no later process will take up what is open."""
        ...


class NoLog:
    """Remembers nothing: for movers outside of a run."""

    def open(self) -> tuple[Submission, ...]:
        """See `TransferLog.open`."""
        return ()

    async def submitted(self, submission: Submission) -> None:
        """See `TransferLog.submitted`."""

    async def ended(self, ended: Ended) -> None:
        """See `TransferLog.ended`."""

    @property
    def closed(self) -> bool:
        """See `TransferLog.closed`."""
        return True


Ask = Callable[[Mapping[str, object]], Awaitable[dict[str, Any]]]
"""Sends one request of `hansa.site.rpc` to the facility; returns the reply's data."""


async def _nobody(request: Mapping[str, object]) -> dict[str, Any]:
    raise UsageError(f"There is no site agent here to ask for {request.get('op')!r}.")


def _unseen(progress: Progress) -> None:
    del progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a mover works, and whom it may turn to.

    Attributes:
        mailbox: The facility's mailbox root, as its site agent names it.
        facility: Name of the facility.
        log: Where submissions are noted.
        ask: Asks the facility's site agent.
        watch: Told how a transfer goes.
    """

    mailbox: Path
    facility: str = "facility"
    log: TransferLog = field(default_factory=NoLog)
    ask: Ask = _nobody
    watch: Callable[[Progress], None] = _unseen


class Mover(Protocol):
    """Carries a directory of files to a facility's mailbox, or back.

    Built as ``cls(options, place)`` with an instance of its `Options`. A directory
    appears under its final name complete and verified, or not at all; moving it twice
    is moving it once. Facility paths are relative to the mailbox root, as
    ``<run>/versions/3``.
    """

    Options: ClassVar[type[BaseModel]]

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """Copy `files` and the manifest from `source` here to `target` there.

        Args:
            source: Directory on the server.
            target: Directory in the facility's mailbox.
            files: What the manifest promises, by file name.

        Raises:
            TransferError: A file is missing or differs from its record, `target`
                exists with another manifest, or the facility can't be written.
            StorageFull: There is no space left; nothing stays visible.
        """
        ...

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """Copy `files` and the manifest from `source` there to `target` here.

        Args:
            source: Directory in the facility's mailbox.
            target: Directory on the server.
            files: What the manifest promises, by file name.

        Raises:
            TransferError: As for `put`.
            StorageFull: As for `put`.
        """
        ...

    async def check(self) -> list[Remark]:
        """Say what can be known of the way there; nothing is moved or changed."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections; the mover is not used after."""
        ...
