"""A facility behind a Globus Compute endpoint: one function, JSON in and out.

The endpoint is the facility's own process on its login node; it calls out to the
service, so that no port is open there. Hansa registers one function, whose whole text
is `hansa.gateway.globus_function` (`hansa function register`), and the facility puts
its id on the endpoint's allow-list. It runs the facility's own ``hansa site rpc``.

What is asked may wait in the service for days, if the endpoint is offline, or for ever,
if the process that should answer has died; and a task can't be cancelled. So each call
has a deadline of its own, carries the time after which nobody wants its answer, and is
forgotten then; who called asks again, which does no harm.

One thing must not come late: a request to submit a job that was cancelled meanwhile.
Where one has not been answered, the request to cancel says how long it may still come,
and the facility refuses it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import GatewayError, HansaError
from hansa.core.remarks import Remark
from hansa.core.units import Seconds
from hansa.gateway import globus_check, globus_service, globus_words
from hansa.gateway.globus_block import Block, BlockOptions, job_of
from hansa.gateway.globus_service import Service

REQUEST_LIMIT: Final = 1_000_000
"""Most bytes of a request; the service takes ten times as many."""

SLACK_S: Final = 300.0
"""How wrong an endpoint's clock may be before it drops requests as too late.

The service itself wants it right by 3 minutes.
"""

_WORDS_S: Final = 5.0
_LATEST_S: Final = 86_400.0


class GlobusComputeOptions(BaseModel):
    """Options of the gateway over Globus Compute.

    Attributes:
        endpoint: Id of the facility's endpoint.
        function: Id of the function there, as `hansa function register` printed it.
        timeout: Time that a call may take; the first one also starts a process there.
        every: Time between two polls at least.
        block: Where nobody may submit from the login node: the second endpoint, which
            holds the nodes that jobs run on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: UUID
    function: UUID
    timeout: Annotated[Seconds, Field(gt=0)] = 120.0
    every: Annotated[Seconds, Field(ge=0)] = 15.0
    block: BlockOptions | None = None


class GlobusComputeGateway:
    """Calls ``hansa site rpc`` through a Globus Compute endpoint.

    Args:
        options: Its options.
    """

    Options: ClassVar[type[BaseModel]] = GlobusComputeOptions

    def __init__(self, options: GlobusComputeOptions) -> None:
        self.timeout = options.timeout
        self.every = options.every
        self._endpoint = str(options.endpoint)
        self._function = str(options.function)
        self._joined: Service | None = None
        self._answers = False
        self._submitting: dict[tuple[str, str], float] = {}
        self._block = (
            None
            if options.block is None
            else Block(options.block, self._function, lambda: self._service)
        )

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - it crosses to the facility's side
    ) -> dict[str, Any]:
        """Return the reply's data; see `Gateway.call`.

        Raises:
            LoginError: Somebody must log in; the hint has the command.
            GatewayError: The endpoint is offline, does not answer in time, may not run
                the function, does not know the caller, has no `hansa`, ...
            HansaError: What the agent answered.
        """
        _check_size(request)
        if self._block is not None:
            self._block.check(request)
        expires, job = time.time() + timeout + SLACK_S, job_of(request)
        if job is not None:
            self._submitting[job] = expires
        arguments = {
            "request": self._with_late(request),
            "timeout": timeout,
            "expires": expires,
        }
        reply = await self._carry_out(request.get("op"), arguments, timeout)
        if job is not None:
            self._submitting.pop(job, None)
        if self._block is not None:
            await self._block.follow(request, reply)
        return reply

    def _with_late(self, request: Mapping[str, object]) -> dict[str, object]:
        """Return a request; to cancel a job says whether its submission may be late."""
        jobs = request.get("jobs")
        if request.get("op") != "cancel" or not isinstance(jobs, list):
            return dict(request)
        run, now = str(request.get("run")), time.time()
        ends = [self._submitting.get((run, key), 0.0) for key in jobs]
        last = max(ends, default=0.0) + SLACK_S - now  # a clock there may be slow
        late = {"late": min(last, _LATEST_S)} if last > 0 else {}
        return {**request, **late}

    async def _carry_out(
        self,
        op: object,
        arguments: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - it crosses to the facility's side
    ) -> dict[str, Any]:
        service, task = self._service, None
        try:
            async with asyncio.timeout(timeout):
                if not self._answers:
                    await self._look()
                task = await service.submit(self._endpoint, self._function, arguments)
                outcome = await service.outcome(task)
        except TimeoutError:
            self._answers = False
            known = await self._known(submitted=task is not None)
            raise globus_words.silent(self._endpoint, op, timeout, known) from None
        if outcome.failure:
            self._answers = False
            raise globus_words.failed(outcome.failure, self._endpoint, self._function)
        self._answers = True
        return globus_words.answered(outcome.result, self._endpoint, self._function)

    async def check(self) -> list[Remark]:
        """Say who is logged in, how the endpoint is, and whether it lets Hansa in."""
        service, function = self._service, self._function
        said = await globus_check.look(service, self._endpoint, function)
        if self._block is not None:
            block = self._block.endpoint
            said += await globus_check.look_at_block(service, block, function)
        return said

    async def close(self) -> None:
        """Let go of the service; what is still asked there is not looked at."""
        if self._joined is not None:
            joined, self._joined = self._joined, None
            await globus_service.part(joined)

    @property
    def _service(self) -> Service:
        if self._joined is None:
            self._joined = globus_service.join()
        return self._joined

    async def _look(self) -> None:
        """Find out whether anybody is there, so that no tasks pile up where nobody is.

        Raises:
            GatewayError: The endpoint is offline.
        """
        if not await self._service.online(self._endpoint):
            raise globus_words.offline(self._endpoint, self._offline_s())

    def _offline_s(self) -> float:
        now = asyncio.get_running_loop().time()
        return now - self._service.offline_since.get(self._endpoint, now)

    async def _known(self, *, submitted: bool) -> str:
        """Return what can be said of a call that got no answer."""
        service = self._service
        if not submitted:
            return "The service did not take the request in time."
        if service.trouble is not None:
            return service.trouble.message
        try:
            async with asyncio.timeout(_WORDS_S):
                online = await service.online(self._endpoint)
        except TimeoutError:
            return "Nor does the service say how it is."
        except HansaError as error:
            return error.message
        if not online:
            return "It is offline now."
        return (
            "The service counts it as online: the process that should answer is still "
            "being started, or has died."
        )


def _check_size(request: Mapping[str, object]) -> None:
    size = len(json.dumps(request))
    if size > REQUEST_LIMIT:
        raise GatewayError(
            f"The request {request.get('op')!r} has {size} bytes; over Globus Compute "
            f"at most {REQUEST_LIMIT} go.",
            hint="Make `model`, `task` or `work` options shorter: name a file at the "
            "facility instead of its content.",
            transient=False,
        )
