"""Faults of the way to a facility are waited out, and told to who can mend them."""

import asyncio
import logging

import pytest

from hansa.coordinator.contact import Contact, FacilityGone
from hansa.core.errors import GatewayError, LoginError, PolicyError
from hansa.site import rpc
from hansa.testing import virtual_time


class Failing:
    """A gateway that fails as told, and then answers."""

    timeout, every = 60.0, 0.0

    def __init__(self, *errors) -> None:
        self.errors = list(errors)

    async def call(self, request, timeout):  # noqa: ASYNC109 - the protocol's
        if self.errors:
            raise self.errors.pop(0)
        return {"at": asyncio.get_running_loop().time()}


def ask(*errors, patience=600.0, show=lambda error: None):
    contact = Contact("east", Failing(*errors), patience=patience, show=show)
    return virtual_time.run(contact.call(rpc.probe()))


LOGIN = LoginError("The login has ended.", hint="Run `hansa login`.")


@pytest.mark.parametrize("error", [GatewayError("no line"), LOGIN])
def test_what_may_pass_is_waited_out(error):
    assert ask(*[error] * 5)["at"] > 5


FOR_GOOD = LoginError("Half a client.", hint="Set both.", transient=False)


@pytest.mark.parametrize("error", [GatewayError("no line", hint="ssh"), FOR_GOOD])
def test_beyond_patience_the_facility_counts_as_lost(error):
    with pytest.raises(FacilityGone, match="east can't be reached") as caught:
        ask(*[error] * 50, patience=30.0)
    assert caught.value.hint == error.hint


def test_a_login_is_waited_for_however_long():
    """A person may sleep; meanwhile jobs go on at the facility."""
    assert ask(*[LOGIN] * 600, patience=30.0)["at"] > 8 * 3600


def test_what_a_person_must_do_is_shown_until_it_is_done():
    shown = []
    ask(GatewayError("no line"), LOGIN, LOGIN, GatewayError("no"), show=shown.append)
    assert shown == [LOGIN, LOGIN, None]
    shown.clear()
    ask(GatewayError("no line"), show=shown.append)
    assert shown == []


def test_the_agents_own_answer_is_not_repeated():
    with pytest.raises(PolicyError):
        ask(PolicyError("too many nodes"))


def test_a_login_is_told_once_with_the_command_and_a_broken_line_is_not(caplog):
    ask(LOGIN, LOGIN, GatewayError("no line"))
    told = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in told] == [
        "east: The login has ended. Run `hansa login`."
    ]
