"""What a batch queue is to a simulated facility."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, eq=False)
class Entry:
    """A job of ours in a batch queue.

    Attributes:
        key: Id of the job, as ``train-0003-polaris-1.1``.
        nodes: Nodes that it asks for.
        walltime: Seconds that it asks for.
        submitted: When it was submitted, in seconds since the run began.
        on_start: Called by the queue, once, at the moment the job starts.
        started: When that was; None while it waits.
    """

    key: str
    nodes: int
    walltime: float
    submitted: float
    on_start: Callable[[], None]
    started: float | None = None


class Queue(Protocol):
    """One facility's batch queue in virtual time.

    It is built with the `Heap` whose `now` is the time, and asks that heap for calls.
    What it draws comes from seeds that are derived from words (`core.rng.derive_seed`)
    and is the same for every strategy: the k-th job of a facility has the k-th draw.
    """

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of the data that it uses, in sentences."""
        ...

    def submit(self, entry: Entry) -> None:
        """Take a job in; `entry.on_start` is called when it starts, not at once.

        Raises:
            SimulationError: The job can't ever run here, as when it asks for more
                nodes than there are.
        """
        ...

    def leave(self, entry: Entry) -> None:
        """Forget a job that was cancelled while it waited, or that has ended."""
        ...
