"""Globus Compute without Globus: the function's text runs in this very process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from hansa.gateway import globus_check
from hansa.gateway.globus_rest import Outcome, Submitted


class ComputeHere:
    """The part of `Rest` that a call needs; every endpoint is this process.

    The function is made out of its text, as an endpoint does, and everything crosses
    as JSON. Its variables are those of this process, ``HANSA_SITE`` among them.
    """

    def __init__(self) -> None:
        space: dict[str, object] = {}
        exec(compile(globus_check.source(), "sent", "exec"), space)  # noqa: S102
        self._function = cast("Callable[..., Any]", space[globus_check.NAME])
        self._threads = ThreadPoolExecutor(4)
        self._tasks: dict[str, Future[str]] = {}

    def status(self, endpoint: str) -> str:
        return "online"

    def submit(
        self,
        endpoint: str,
        function: str,
        arguments: Mapping[str, object],
        group: str | None,
        resources: Mapping[str, int] | None = None,
    ) -> Submitted:
        task, sent = str(uuid.uuid4()), json.dumps(arguments)
        self._tasks[task] = self._threads.submit(self._run, sent)
        return Submitted(task, group or "group")

    def _run(self, sent: str) -> str:
        return json.dumps(self._function(**json.loads(sent)))

    def outcomes(self, tasks: Iterable[str]) -> dict[str, Outcome]:
        return {task: _outcome(self._tasks[task]) for task in tasks}

    def close(self) -> None:
        pass


def _outcome(task: Future[str]) -> Outcome:
    if not task.done():
        return Outcome("running")
    if (error := task.exception()) is not None:
        return Outcome("failed", over=True, failure=repr(error))
    return Outcome("success", over=True, result=json.loads(task.result()))
