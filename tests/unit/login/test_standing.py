"""What `hansa check` says of a login, and what `whoami` shows."""

import json
import time

import pytest
from globus_auth import APP, CLIENT, PERSON, SECRET

from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING
from hansa.login import clients, credentials, folder
from hansa.login.standing import remarks, standing

ONE = "aaaaaaaa-0000-4000-8000-00000000000a"
TWO = "bbbbbbbb-0000-4000-8000-00000000000b"
DAY = 24 * 3600


@pytest.fixture
def eagle(auth):
    """A collection without high assurance."""
    auth.documents[ONE] = {"id": ONE, "display_name": "Eagle", "high_assurance": False}
    return ONE


@pytest.fixture
def vault(auth):
    """A collection that wants a login every three days."""
    auth.documents[TWO] = {
        "id": TWO,
        "display_name": "Vault",
        "high_assurance": True,
        "authentication_timeout_mins": 3 * 24 * 60,
    }
    return TWO


@pytest.fixture
def app(auth, monkeypatch):
    monkeypatch.setattr(credentials, "_taken", {})
    monkeypatch.setenv(credentials.ID, APP)
    monkeypatch.setenv(credentials.SECRET, SECRET)
    return auth


def states(found):
    return [one.state for one in found]


def test_a_login_that_is_enough_is_one_remark(auth, log_in, eagle):
    log_in(ONE)
    (found,) = remarks(compute=True, collections={ONE: True})
    assert (found.check, found.state) == ("login", OK)
    assert "ada@anl.gov" in found.detail


def test_without_a_login_the_remark_has_the_command(auth):
    folder.remember_client_id(CLIENT)
    (found,) = remarks(compute=True)
    assert found.state == PROBLEM
    assert "`hansa login`" in found.hint


def test_a_service_that_was_left_out_is_seen(auth, log_in):
    log_in(compute=False)
    (found,) = remarks(compute=True, collections={})
    assert found.state == PROBLEM
    assert "funcx_service" in found.detail


def test_a_missing_consent_is_seen_before_a_run(auth, log_in, eagle, vault):
    log_in(ONE)
    auth.consents.clear()  # taken back on the page of consents
    found = remarks(collections={ONE: True, TWO: False})
    problem = next(one for one in found if one.state == PROBLEM)
    assert ONE in problem.detail
    assert problem.hint == f"Run `hansa login --collection {ONE}`."


def test_a_login_that_was_revoked_is_seen(auth, log_in):
    log_in()
    auth.expire()
    auth.refreshes.clear()
    (found,) = remarks(compute=True)
    assert found.state == PROBLEM
    assert "no longer takes the login" in found.detail


def test_tokens_that_are_not_refreshed_are_a_warning(auth, log_in):
    auth.refreshable = False
    log_in()
    first, *others = remarks(compute=True)
    assert first.state == OK
    assert set(states(others)) == {WARNING}
    assert "Globus Compute ends 20" in " ".join(one.detail for one in others)


@pytest.mark.parametrize(
    ("age", "state"), [(0.1 * DAY, OK), (2.5 * DAY, WARNING), (4 * DAY, PROBLEM)]
)
def test_a_session_that_ends_is_seen_before_a_run(auth, log_in, vault, age, state):
    auth.last_login = time.time() - age
    log_in()
    _, found = remarks(collections={TWO: False})
    assert found.state == state
    assert "Vault wants a login every" in found.detail
    if state != OK:
        assert "`hansa login --session fresh`" in found.hint


def test_a_collection_that_is_unknown_is_not_guessed_about(auth, log_in):
    log_in()
    _, found = remarks(collections={ONE: False})
    assert found.state == UNKNOWN
    assert ONE in found.detail


def test_an_answer_that_means_nothing_is_told(auth, log_in):
    log_in()
    auth.identity = TWO  # the consents of the one who is logged in are not found
    (found,) = remarks(compute=True)
    assert found.state == PROBLEM
    assert "answers 404" in found.detail
    assert "`hansa logout && hansa login`" in found.hint


def test_a_service_that_is_away_is_no_problem_of_the_login(auth, log_in, monkeypatch):
    from hansa.core.errors import GatewayError

    def away():
        raise GatewayError("Globus can't be reached.", hint="Wait.")

    log_in()
    monkeypatch.setattr(clients, "auth_client", away)
    (found,) = remarks(compute=True)
    assert (found.state, found.hint) == (UNKNOWN, "Wait.")


def test_a_client_app_has_no_session_and_gets_its_consents_itself(app, vault):
    (found,) = remarks(compute=True, collections={ONE: True, TWO: False})
    assert found.state == OK
    assert "client app" in found.detail


def test_standing_shows_all_but_secrets(auth, log_in, eagle):
    log_in(ONE)
    found = standing()
    assert (found.client, found.identity, found.is_app) == (CLIENT, PERSON, False)
    assert (found.username, found.name) == ("ada@anl.gov", "Ada")
    assert found.consents == (ONE,)
    assert found.last_login == int(auth.last_login)
    services = {one.service: one for one in found.accesses}
    assert set(services) == {"Globus Auth", "Globus Compute", "Globus Transfer"}
    assert all(one.refreshed for one in services.values())
    left = services["Globus Transfer"].ends - time.time()
    assert auth.life - 60 < left <= auth.life + 1
    text = json.dumps(found.to_json()) + repr(found)
    assert not [one for one in auth.secrets() if one in text]


def test_standing_of_a_client_app(app):
    found = standing()
    assert (found.client, found.identity, found.is_app) == (APP, APP, True)
    assert found.accesses == ()
