"""At most one job without an order in a queue, and each journaled once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from hansa.coordinator.ahead import Ahead, AheadSettings
from hansa.coordinator.contact import Contact
from hansa.coordinator.follow import Followers
from hansa.coordinator.poller import Pace, Poller
from hansa.core.events import Event, JobQueued
from hansa.core.remarks import Remark
from hansa.testing import virtual_time

NAME = "ahead-0001-a-1"


class Site:
    """Places jobs, and takes its time."""

    timeout, every = 60.0, 0.0

    def __init__(self) -> None:
        self.placed: list[Mapping[str, Any]] = []

    async def call(
        self,
        request: Mapping[str, Any],
        timeout: float,  # noqa: ASYNC109 - the protocol's
    ) -> dict[str, Any]:
        if request["op"] == "poll":
            return {"jobs": {}}
        self.placed.append(request)
        await asyncio.sleep(5.0)
        return {"job": "17", "name": "", "found": False}

    async def check(self) -> list[Remark]:
        return []

    async def close(self) -> None:
        """Nothing to close."""


class Place:
    """A facility's `Ahead` with what it needs."""

    def __init__(self, **settings: Any) -> None:
        self.site = Site()
        self.events: list[Event] = []
        self.contact = Contact("a", self.site, patience=60.0)
        self.poller = Poller(
            self.contact, "r", lambda error: None, pace=Pace(), patience=60.0
        )
        self.followers = Followers(
            "r",
            self.contact,
            self.poller,
            emit=self.events.append,
            show=lambda job, report: None,
        )
        words = {"wait": 60.0, "due": lambda: True, "nonce": lambda: "n", **settings}
        self.ahead = Ahead(
            "r",
            "a",
            {"nodes": 1},
            AheadSettings(**words),
            self.contact,
            self.followers,
            self.events.append,
        )

    async def close(self) -> None:
        await self.followers.close()
        await self.poller.close()


async def _twice() -> Place:
    place = Place()
    task = asyncio.create_task(place.ahead.place())
    await asyncio.sleep(1.0)
    # An order was handed over to it before its placing was answered.
    assert place.ahead.adopt(NAME, "17")
    assert not place.ahead.adopt(NAME, "17")
    await task
    await place.ahead.place()
    await place.close()
    return place


def test_a_job_that_is_met_while_it_is_placed_is_journaled_once() -> None:
    place = virtual_time.run(_twice())
    assert [event.assignment for event in place.events] == [NAME]  # type: ignore[union-attr]
    assert len(place.site.placed) == 1


async def _placed(**settings: Any) -> Place:
    place = Place(**settings)
    await place.ahead.place()
    await place.close()
    return place


def test_a_job_is_placed_for_this_run_and_journaled() -> None:
    place = virtual_time.run(_placed(last=lambda: 6))
    (request,) = place.site.placed
    assert (request["assignment"], request["nonce"]) == ("ahead-0007-a-1", "n")
    (event,) = place.events
    assert isinstance(event, JobQueued)
    assert (event.assignment, event.job) == ("ahead-0007-a-1", "17")


def test_nothing_is_placed_that_is_not_due_or_not_wanted() -> None:
    assert virtual_time.run(_placed(due=lambda: False)).site.placed == []
    assert virtual_time.run(_placed(wait=0.0)).site.placed == []
