"""A facility on this machine: the site agent runs in a thread of this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from hansa.core.errors import GatewayError
from hansa.core.remarks import Remark
from hansa.site.agent import Agent
from hansa.site.rpc import unwrap
from hansa.spec.site import load_site


class LocalOptions(BaseModel):
    """Options of the local gateway.

    Attributes:
        site: The facility's site.yaml.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: Path


class LocalGateway:
    """Calls the site agent in one thread of its own, so that it never blocks the loop.

    Requests and replies pass through JSON, as they do on the way to a real facility.

    Args:
        options: Its options.
    """

    Options: ClassVar[type[BaseModel]] = LocalOptions
    timeout = 60.0
    every = 0.0

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._agent: Agent | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hansa-site")

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - it crosses to the facility's side
    ) -> dict[str, Any]:
        """Return the reply's data; see `Gateway.call`.

        Raises:
            GatewayError: The site file is not there, or the agent takes too long.
            SpecError: The site file is wrong.
            HansaError: What the agent answered.
        """
        text = json.dumps(request)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                answer = await loop.run_in_executor(self._thread, self._handle, text)
        except TimeoutError:
            raise GatewayError(
                f"The site agent of {self._options.site} has not answered "
                f"{request.get('op')!r} within {timeout:g} s.",
            ) from None
        return unwrap(json.loads(answer))

    async def check(self) -> list[Remark]:
        """Say nothing: there is no way to go wrong on."""
        return []

    async def close(self) -> None:
        """Let go of the thread; a call that hangs is left behind."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _handle(self, text: str) -> str:
        if self._agent is None:
            self._agent = self._load()
        return json.dumps(self._agent.handle(json.loads(text)))

    def _load(self) -> Agent:
        if not self._options.site.is_file():
            raise GatewayError(
                f"There is no site file {self._options.site}.",
                hint="`gateway.site` in federation.yaml must name the facility's "
                "site.yaml; `hansa init` writes one.",
                transient=False,
            )
        return Agent(load_site(self._options.site))
