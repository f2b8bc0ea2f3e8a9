"""What a gateway is to a lane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from hansa.core.remarks import Remark


class Gateway(Protocol):
    """Carries one request to a facility's site agent and its reply back.

    Built as ``cls(options)`` with an instance of its `Options`. Requests are made by
    `hansa.site.rpc`; all of them may be repeated without harm.

    Attributes:
        timeout: Seconds within which a facility that is well has answered.
        every: Seconds between two polls at least, so as not to wear the way out.
    """

    Options: ClassVar[type[BaseModel]]
    timeout: float
    every: float

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - it crosses to the facility's side
    ) -> dict[str, Any]:
        """Return the reply's data.

        Args:
            request: One request of `hansa.site.rpc`.
            timeout: Seconds to wait for the reply.

        Raises:
            GatewayError: The facility can't be reached, does not answer in time, or
                answers nonsense.
            HansaError: Whatever the agent answered, rebuilt (`PolicyError`,
                `SchedulerError`, ...).
        """
        ...

    async def check(self) -> list[Remark]:
        """Say what can be known of the way there without asking the site agent."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections; the gateway is not used after."""
        ...
