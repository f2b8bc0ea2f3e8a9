"""What a check says of the way through Globus Compute, before it is used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final

from hansa.core.errors import HansaError
from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING, Remark
from hansa.gateway.globus_service import Service
from hansa.login import standing

NAME: Final = "hansa_site_rpc"
"""What is called in the function's text."""

_CHECK: Final = "endpoint"
_LONGEST_S: Final = 60.0
_WRAPPED: Final = re.compile(rf"\A(?:\d+\n)?st\n{NAME}:")


def source() -> str:
    """Return the text of the one function that is registered."""
    return (files("hansa.gateway") / "globus_function.py").read_text(encoding="utf-8")


def text_of(description: Mapping[str, Any]) -> str:
    """Return the source of a registered function.

    Args:
        description: What the service says of it. The text stands there as it was
            registered, or wrapped as it is sent to endpoints.
    """
    return _WRAPPED.sub("", str(description.get("function_code", "")), count=1)


def is_ours(description: Mapping[str, Any]) -> bool:
    """Tell whether a registered function is this Hansa's own, letter for letter.

    Args:
        description: What the service says of it.
    """
    named = description.get("function_name", NAME)
    return named == NAME and text_of(description) == source()


async def look(service: Service, endpoint: str, function: str) -> list[Remark]:
    """Return what there is to say of login, endpoint, allow-list and function."""
    said = await asyncio.to_thread(standing.remarks, compute=True)
    if any(one.state not in (OK, WARNING) for one in said):
        return said
    try:
        async with asyncio.timeout(_LONGEST_S):
            said += await _of_endpoint(service, endpoint)
            said += await _of_list(service, endpoint, function)
            said += await _of_function(service, function)
    except TimeoutError:
        words = f"Globus Compute has not answered within {_LONGEST_S:g} s."
        said.append(Remark(_CHECK, UNKNOWN, words, "See https://status.globus.org."))
    return said


async def look_at_block(service: Service, endpoint: str, function: str) -> list[Remark]:
    """Return what there is to say of the endpoint that holds a block of nodes."""
    try:
        async with asyncio.timeout(_LONGEST_S):
            said = await _of_endpoint(service, endpoint)
            said += await _of_list(service, endpoint, function)
    except TimeoutError:
        words = f"Globus Compute has not answered within {_LONGEST_S:g} s."
        said = [Remark(_CHECK, UNKNOWN, words, "See https://status.globus.org.")]
    return [replace(one, detail=f"block: {one.detail}") for one in said]


async def _of_endpoint(service: Service, endpoint: str) -> list[Remark]:
    try:
        about = await service.ask(lambda rest: rest.endpoint(endpoint))
        online = await service.online(endpoint)
    except HansaError as error:
        return [_refused(error)]
    name = about.get("display_name") or about.get("endpoint_name") or about.get("name")
    known = f"{name} ({endpoint})" if name else endpoint
    if online:
        return [Remark(_CHECK, OK, f"{known} is online")]
    return [
        Remark(
            _CHECK,
            PROBLEM,
            f"The endpoint {known} is offline.",
            "Its owner starts it with `globus-compute-endpoint start NAME`.",
        )
    ]


async def _of_list(service: Service, endpoint: str, function: str) -> list[Remark]:
    try:
        allowed = await service.ask(lambda rest: rest.allowed(endpoint))
    except HansaError as error:
        # Some services show the list to the endpoint's owner only.
        return [Remark(_CHECK, UNKNOWN, f"The allow-list is not shown: {error}")]
    if allowed is None:
        return [
            Remark(
                _CHECK,
                WARNING,
                "The endpoint runs any function of anybody whom it knows.",
                f"Its owner should allow `{function}` only, in `allowed_functions`.",
            )
        ]
    if function.lower() in {one.lower() for one in allowed}:
        return [Remark(_CHECK, OK, f"allows the function {function}")]
    return [
        Remark(
            _CHECK,
            PROBLEM,
            f"The endpoint may not run the function {function}.",
            f"Ask its owner to add {function} to `allowed_functions` in its "
            "config.yaml and to restart it.",
        )
    ]


async def _of_function(service: Service, function: str) -> list[Remark]:
    try:
        about = await service.ask(lambda rest: rest.function(function))
    except HansaError as error:
        return [_refused(error)]
    if is_ours(about):
        return []
    return [
        Remark(
            _CHECK,
            WARNING,
            f"The function {function} has another text than this Hansa's.",
            "Register this one with `hansa function register`, and have it allowed; "
            f"`hansa function show {function}` prints the other's text.",
        )
    ]


def _refused(error: HansaError) -> Remark:
    state = UNKNOWN if error.transient else PROBLEM
    return Remark(_CHECK, state, error.message, error.hint or "")
