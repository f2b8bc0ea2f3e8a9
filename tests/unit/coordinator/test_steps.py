"""Which faults are waited for, how long, and which have a number of tries."""

from __future__ import annotations

import asyncio
import logging

import pytest

from hansa.coordinator.steps import InVain, Steps
from hansa.core.errors import (
    FacilityError,
    HansaError,
    LoginError,
    PolicyError,
    SchedulerError,
    StorageFull,
    TransferError,
)
from hansa.core.retry import RetryPolicy
from hansa.mover.base import Damaged
from hansa.testing import virtual_time


class Step:
    """Fails until some time."""

    def __init__(self, error: HansaError, until: float) -> None:
        self.error = error
        self.until = until
        self.tries = 0

    async def __call__(self) -> None:
        self.tries += 1
        if asyncio.get_running_loop().time() < self.until:
            raise self.error


def repeat(step: Step, patience: float = 3600.0) -> tuple[float, list[str]]:
    """Return when it was done, and what people were shown."""
    shown: list[HansaError] = []

    async def carry_out() -> float:
        await Steps(RetryPolicy(), patience).repeat("k", step, shown.append)
        return asyncio.get_running_loop().time()

    return virtual_time.run(carry_out()), [error.message for error in shown]


@pytest.mark.parametrize(
    "error",
    [SchedulerError("Away.", transient=True), TransferError("The line is down.")],
)
def test_a_line_or_a_scheduler_that_is_away_is_waited_for(error: HansaError) -> None:
    step = Step(error, until=1800.0)
    at, shown = repeat(step)
    # With waits that grow to a minute: neither late nor a burden.
    assert 1800 <= at <= 1860
    assert 30 < step.tries < 60
    assert set(shown) == {error.message}


def test_but_not_longer_than_patience() -> None:
    error = SchedulerError("Away.", transient=True)
    step = Step(error, until=1e9)
    with pytest.raises(InVain) as vain:
        repeat(step, patience=600.0)
    assert vain.value.error is error
    assert step.tries < 25


@pytest.mark.parametrize(
    "error", [PolicyError("Full.", transient=True), LoginError("No login.")]
)
def test_a_full_queue_and_a_login_are_waited_for_however_long(
    error: HansaError,
) -> None:
    at, _ = repeat(Step(error, 9000.0), patience=60.0)
    assert 9000 <= at <= 9060


def test_the_command_that_logs_in_is_told(caplog: pytest.LogCaptureFixture) -> None:
    repeat(Step(LoginError("No login.", hint="Run `hansa login`."), 600.0))
    told = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in told] == ["k: No login. Run `hansa login`."]


def test_what_is_damaged_has_a_number_of_tries() -> None:
    step = Step(Damaged("Other bytes."), until=1e9)
    with pytest.raises(Damaged):
        repeat(step)
    assert step.tries == RetryPolicy().attempts


@pytest.mark.parametrize(
    "error",
    [SchedulerError("No such queue."), FacilityError("No id."), StorageFull("Full.")],
)
def test_what_lasts_is_not_tried_again(error: HansaError) -> None:
    step = Step(error, until=1e9)
    with pytest.raises(type(error)):
        repeat(step)
    assert step.tries == 1
