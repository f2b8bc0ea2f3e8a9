"""Checkpoints on the side: a step waits until one is written, not until it is safe."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from hansa.core.errors import HansaError
from hansa.worker import checkpoint
from hansa.worker.checkpoint import Progress

log = logging.getLogger(__name__)

SHARE: Final = 0.1
"""Steps wait for checkpoints at most this share of the time; slow ones get rarer."""


class Saver:
    """Writes the checkpoints of one order, one after the other.

    Its files are written while the training stands still; a thread then hashes them,
    brings them to the disk and lets the checkpoint count. As a context manager it waits
    for that at the end; a last one that fails is logged, as training needs it no more.

    Args:
        directory: The job's checkpoints.
        every: Seconds from one to the next, at least.

    Attributes:
        stalled_s: Seconds that steps have waited, all in all.
        longest_s: Seconds that one took until it was safe, the longest yet.
    """

    def __init__(self, directory: Path, every: float) -> None:
        self._directory = directory
        self._every = every
        self._last = time.monotonic()
        self._stall = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._sealing: Future[float] | None = None
        self.stalled_s = 0.0
        self.longest_s = 0.0

    def due(self) -> bool:
        """Tell whether it is time for one: none is under way, and the last is old."""
        if self._sealing is not None and not self._sealing.done():
            return False
        pause = max(self._every, self._stall / SHARE)
        return time.monotonic() - self._last >= pause

    def save(self, progress: Progress, trainer: checkpoint.Savable) -> None:
        """Write a checkpoint, once the one before is safe.

        Raises:
            PolicyError: A symbolic link leads elsewhere.
            StorageFull: No space for this one, or for the one before.
            OSError: The directory can't be written.
        """
        began = time.monotonic()
        self.wait()
        unsealed = checkpoint.write(self._directory, progress, trainer)
        self._last = time.monotonic()
        self._stall = self._last - began
        self.stalled_s += self._stall
        if unsealed is not None:
            self._sealing = self._thread.submit(_seal, unsealed, began)

    def wait(self) -> None:
        """Wait until the last checkpoint is safe; raises as `save` does."""
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            self.longest_s = max(self.longest_s, sealing.result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        try:
            self.wait()
        except (HansaError, OSError) as failure:
            log.warning("The last checkpoint was not kept: %s", failure)


def _seal(unsealed: checkpoint.Unsealed, began: float) -> float:
    """Seal a checkpoint; return the seconds since it was begun."""
    checkpoint.seal(unsealed)
    return time.monotonic() - began
