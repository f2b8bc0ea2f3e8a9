"""Talking to one facility with patience."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from hansa.core.errors import (
    FacilityError,
    GatewayError,
    HansaError,
    LoginError,
    StoreError,
)
from hansa.core.retry import RetryPolicy
from hansa.gateway.base import Gateway
from hansa.site import rpc

log = logging.getLogger(__name__)


class FacilityGone(GatewayError):
    """The facility has been silent for longer than the plan's patience."""


def _nobody(error: LoginError | None) -> None:
    del error


class Contact:
    """Site RPCs with retries; faults of the line are mended here or end in a loss.

    A facility is silent while nothing answers. While a login is missing, the service
    on the way does answer: a person may need hours, and is waited for.

    Args:
        facility: Its name, for messages.
        gateway: The control plane to it.
        patience: Seconds without an answer after which it counts as lost.
        retry: Waits between tries.
        show: Told of a login that a person must mend; None: it is mended.
    """

    def __init__(
        self,
        facility: str,
        gateway: Gateway,
        *,
        patience: float,
        retry: RetryPolicy | None = None,
        show: Callable[[LoginError | None], None] = _nobody,
    ) -> None:
        self.facility = facility
        self._gateway = gateway
        self._patience = patience
        self._retry = retry or RetryPolicy(first=0.5, longest=60.0)
        self._timeout = min(gateway.timeout, max(patience, 1.0))
        self._show = show
        self._wants_login = False

    @property
    def every(self) -> float:
        """Seconds between two polls at least."""
        return self._gateway.every

    async def call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request of `hansa.site.rpc` until it is answered; return the data.

        Raises:
            FacilityGone: No answer for as long as patience allows.
            HansaError: The agent answered with an error.
        """
        loop = asyncio.get_running_loop()
        since, tries = loop.time(), 0
        while True:
            try:
                return await self.call_once(request)
            except (GatewayError, LoginError) as error:
                tries += 1
                wait, now = self._retry.delay(tries, self.facility), loop.time()
                if isinstance(error, LoginError):
                    since = now + wait
                if not error.transient or now + wait - since > self._patience:
                    raise self._gone(error) from error
                self._tell(error, tries)
            await asyncio.sleep(wait)

    def _tell(self, error: FacilityError, tries: int) -> None:
        """Write down a fault; a login is for a person to mend, who must read of it."""
        if isinstance(error, LoginError) and tries == 1:
            log.error("%s: %s %s", self.facility, error, error.hint or "")
        else:
            log.warning("%s: %s; trying again", self.facility, error)

    async def call_once(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request once; every fault is raised as it is.

        Only a full or damaged store of the facility's own changes its class, so that
        nobody takes it for the server's.
        """
        try:
            answer = await self._gateway.call(request, self._timeout)
        except LoginError as error:
            self._wants_login = True
            self._show(error)
            raise
        except StoreError as error:
            raise FacilityError.of(error) from error
        if self._wants_login:
            self._wants_login = False
            self._show(None)
        return answer

    async def back_again(self, every: float = 5.0, longest: float = 60.0) -> None:
        """Return when the facility answers a probe again, and is well."""
        wait = every
        while (trouble := await self._trouble()) is not None:
            log.info("%s is still away: %s", self.facility, trouble)
            await asyncio.sleep(wait)
            wait = min(wait * 2, longest)

    async def _trouble(self) -> object | None:
        try:
            health = await self.call_once(rpc.probe())
        except HansaError as error:
            return error
        return health.get("problems") or None

    async def close(self) -> None:
        """Close the gateway."""
        await self._gateway.close()

    def _gone(self, error: FacilityError) -> FacilityGone:
        return FacilityGone(
            f"{self.facility} can't be reached: {error.message}",
            hint=error.hint,
            transient=False,
        )
