"""Repeating a lane's steps, which is harmless, until they succeed or it is vain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from hansa.core.errors import FacilityError, HansaError, LoginError, PolicyError
from hansa.core.retry import RetryPolicy
from hansa.mover.base import Damaged

log = logging.getLogger(__name__)


class InVain(Exception):
    """Waiting has not helped, and another job would not either; `error` says why."""

    def __init__(self, error: HansaError) -> None:
        super().__init__(error.message)
        self.error = error


class Steps:
    """Repeats steps while their faults are transient.

    A line or a scheduler that is away is waited for as long as a silent facility, a
    full queue (the site's own limit) and a login that a person must mend however long.
    Only what arrives damaged has a number of tries: the same bytes will not get better.

    Args:
        retry: Waits between tries, and the number of those that count.
        patience: Seconds that one step may wait for better times.
    """

    def __init__(self, retry: RetryPolicy, patience: float) -> None:
        self._retry = retry
        self._patience = patience

    async def repeat(
        self,
        key: str,
        step: Callable[[], Awaitable[None]],
        show: Callable[[FacilityError], None],
    ) -> None:
        """Carry a step out.

        Args:
            key: Key of the job, for messages.
            step: What to do; it may be done again after any fault.
            show: Told of every fault that is waited for.

        Raises:
            InVain: Patience is over.
            HansaError: It failed for good, or what came is damaged.
        """
        waits, damages, waited, told = 0, 0, 0.0, False
        while True:
            try:
                return await step()
            except FacilityError as error:
                waits += 1
                wait = self._retry.delay(waits, key)
                if not error.transient:
                    raise
                if isinstance(error, Damaged):
                    damages += 1
                    if not self._retry.allows(damages):
                        raise
                elif not isinstance(error, PolicyError | LoginError):
                    # Not by the clock: a transfer that takes long is no waiting.
                    waited += wait
                    if waited > self._patience:
                        raise InVain(error) from error
                told = _tell(key, error, told=told)
                show(error)
            await asyncio.sleep(wait)


def _tell(key: str, error: FacilityError, *, told: bool) -> bool:
    """Write down a fault; a missing login once so that a person reads of it."""
    login = isinstance(error, LoginError)
    if login and not told:
        log.error("%s: %s %s", key, error, error.hint or "")
    else:
        log.warning("%s: %s; trying again", key, error)
    return login
