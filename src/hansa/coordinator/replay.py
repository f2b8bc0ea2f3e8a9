"""Rebuilding a run from its journal: for recovery, audit and `hansa replay`."""

from __future__ import annotations

from collections.abc import Iterable

from hansa.coordinator.core import Coordinator
from hansa.core.errors import JournalError
from hansa.journal.line import Record


def replay(records: Iterable[Record], coordinator: Coordinator) -> int:
    """Feed journaled events to a fresh core and return how many there were.

    Every record carries a digest of all commands issued before it; the replay must
    come to the same digest each time, or this Hansa (or this plan) would not have
    acted as the run did.

    Raises:
        JournalError: The replay takes another course than the run did.
    """
    count = 0
    for record in records:
        if record.digest != coordinator.digest:
            raise JournalError(
                f"Record {record.seq} ({type(record.event).__name__}) was written "
                f"after commands with digest {record.digest or 'none'}; the replay "
                f"comes to {coordinator.digest or 'none'}.",
                hint="The run was made by another version of Hansa or by another "
                "plan. Use that version, or start a new run.",
            )
        coordinator.handle(record.event)
        count += 1
    return count
