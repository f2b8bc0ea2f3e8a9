"""How often the facility is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest

from hansa.coordinator.contact import Contact
from hansa.coordinator.poller import Pace, Poller
from hansa.core.errors import HansaError
from hansa.core.remarks import Remark
from hansa.testing import virtual_time

PACE = Pace(first=2.0, longest=60.0)


class Quiet:
    """A facility where nothing ever changes."""

    timeout, every = 60.0, 0.0

    def __init__(self) -> None:
        self.polls: list[float] = []

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - the protocol's
    ) -> dict[str, Any]:
        self.polls.append(asyncio.get_running_loop().time())
        return {"jobs": {}}

    async def check(self) -> list[Remark]:
        return []

    async def close(self) -> None:
        """Nothing to close."""


def fail(error: HansaError) -> None:
    raise AssertionError(error)


def polls(at: float, seconds: float) -> list[float]:
    """Return when a facility was polled whose poller was told to ask sooner."""
    quiet = Quiet()

    async def watch(poller: Poller) -> None:
        async with aclosing(poller.reports("train-0001-a-1.1")) as reports:
            async for _ in reports:
                pass

    async def main() -> None:
        contact = Contact("a", quiet, patience=60.0)
        poller = Poller(contact, "r", fail, pace=PACE, patience=60.0)
        watching = asyncio.create_task(watch(poller))
        await asyncio.sleep(at)
        poller.sooner()
        await asyncio.sleep(seconds)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await poller.close()

    virtual_time.run(main())
    return quiet.polls


def test_sooner_ends_a_long_wait_and_begins_with_short_ones() -> None:
    seen = polls(1000.0, 30.0)
    before = [time for time in seen if time < 1000]
    after = [time for time in seen if time >= 1000]
    assert before[-1] - before[-2] == pytest.approx(60.0)
    assert after[0] == pytest.approx(1000.0)
    assert after[1] - after[0] == pytest.approx(2.0)
    assert min(b - a for a, b in pairwise(seen)) >= 2.0 - 1e-6
