"""A facility that exists in simulations only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict

from hansa.core.errors import UsageError
from hansa.core.remarks import Remark


class SimulatedGatewayOptions(BaseModel):
    """Options of the simulated gateway: there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedGateway:
    """Stands where a federation file needs a gateway but is only ever simulated.

    Args:
        options: Its options.

    Raises:
        UsageError: Always, so that nothing is asked of a facility that is not there.
    """

    Options: ClassVar[type[BaseModel]] = SimulatedGatewayOptions
    timeout = 60.0
    every = 0.0

    def __init__(self, options: SimulatedGatewayOptions) -> None:
        self._options = options
        _refuse()

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - it crosses to the facility's side
    ) -> dict[str, Any]:
        """See `Gateway.call`; there is nobody to call.

        Raises:
            UsageError: Always.
        """
        _refuse()

    async def check(self) -> list[Remark]:
        """See `Gateway.check`.

        Raises:
            UsageError: Always.
        """
        _refuse()

    async def close(self) -> None:
        """See `Gateway.close`; nothing was opened."""


def _refuse() -> NoReturn:
    raise UsageError(
        "This facility exists in simulations only; nobody can be asked there.",
        hint="`hansa simulate FILE` and `hansa compare FILE` carry such a federation "
        "out. For a real run, give each facility a gateway and a mover.",
    )
