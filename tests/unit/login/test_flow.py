"""Logging in: what is asked of Globus, what is kept, and what is refused."""

import pytest
from globus_auth import APP, CLIENT, COMPUTE, SECRET, TRANSFER

from hansa.core.errors import LoginError, UsageError
from hansa.login import credentials, flow, folder
from hansa.login.scopes import Wanted
from hansa.login.tokens import Tokens

ONE = "aaaaaaaa-0000-4000-8000-00000000000a"
TWO = "bbbbbbbb-0000-4000-8000-00000000000b"
COMPUTE_ALL = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"


def address_of(auth):
    """Return the query of the last address that the person opened."""
    return [query for what, query in auth.asked if what == "authorize"][-1]


def test_one_login_asks_for_every_consent(auth, log_in):
    log_in(TWO, ONE)
    asked = address_of(auth)
    consents = " ".join(
        f"*https://auth.globus.org/scopes/{one}/data_access" for one in (ONE, TWO)
    )
    assert (
        f"urn:globus:auth:scope:transfer.api.globus.org:all[{consents}]"
        in asked["scope"]
    )
    assert COMPUTE_ALL in asked["scope"]
    assert asked["client_id"] == CLIENT
    assert asked["access_type"] == "offline"  # refresh tokens
    assert asked["code_challenge"]  # PKCE: the code alone is worth nothing
    kept = Tokens(CLIENT).read()
    assert all(one.refresh_token for one in kept.values())
    assert {TRANSFER, COMPUTE} < set(kept)


def test_only_what_is_needed_is_asked_for(auth, log_in):
    log_in(compute=False)
    assert COMPUTE_ALL not in address_of(auth)["scope"]
    log_in(transfer=False)
    assert "transfer.api" not in address_of(auth)["scope"]


def test_what_the_session_must_have_is_asked_for(auth, log_in):
    wants = ["identity=ada@anl.gov", "domain=anl.gov", f"policy={ONE}", "mfa", "fresh"]
    log_in(session=wants)
    asked = address_of(auth)
    assert asked["session_required_identities"] == "ada@anl.gov"
    assert asked["session_required_single_domain"] == "anl.gov"
    assert asked["session_required_policies"] == ONE
    assert asked["session_required_mfa"] == "True"
    assert asked["prompt"] == "login"


def test_an_ordinary_login_wants_nothing_special_of_the_session(auth, log_in):
    log_in()
    assert not [
        key for key in address_of(auth) if key.startswith(("session", "prompt"))
    ]


@pytest.mark.parametrize("text", ["domain", "domain=", "colour=red", "mfa=yes", ""])
def test_a_session_that_means_nothing_is_refused(text):
    with pytest.raises(UsageError, match="means nothing"):
        flow.Session.parse([text])


@pytest.mark.parametrize("text", ["eagle", "", "aaaaaaaa-0000-4000-8000-00000000000g"])
def test_an_id_that_is_none_is_refused(auth, text):
    with pytest.raises(UsageError, match="no id of Globus"):
        Wanted(collections=(text,)).scopes()
    with pytest.raises(UsageError, match="no id of Globus"):
        flow.choose_client(text)


def test_a_wrong_code_is_told_and_nothing_is_kept(auth):
    with pytest.raises(LoginError, match="code was not taken") as caught:
        flow.log_in(CLIENT, Wanted(), flow.Session(), lambda address: "wrong")
    assert "again" in caught.value.hint
    assert folder.read_client_id() is None
    assert Tokens(CLIENT).read() == {}


def test_a_login_that_gives_less_is_refused_and_revoked(auth, log_in):
    auth.withheld = {COMPUTE}
    with pytest.raises(LoginError, match="no token for funcx_service"):
        log_in()
    assert auth.tokens == {}
    assert Tokens(CLIENT).read() == {}


def test_somebody_else_must_log_out_first(auth, log_in):
    log_in()
    before = Tokens(CLIENT).read()[TRANSFER].access_token
    auth.identity = TWO
    with pytest.raises(LoginError, match="somebody else is logged in") as caught:
        log_in()
    assert "`hansa logout && hansa login`" in caught.value.hint
    assert set(auth.tokens) >= {before}
    assert Tokens(CLIENT).read()[TRANSFER].access_token == before


def test_the_client_id_is_the_given_one_else_the_remembered_one(auth, log_in):
    with pytest.raises(LoginError, match="no Globus client id"):
        flow.choose_client(None)
    assert flow.choose_client(CLIENT.upper()).id == CLIENT
    log_in()
    assert flow.choose_client(None).id == CLIENT
    assert flow.choose_client(None).secret is None


def test_another_client_id_needs_a_logout(auth, log_in):
    log_in()
    with pytest.raises(LoginError, match="another client") as caught:
        flow.choose_client(TWO)
    assert f"`hansa logout && hansa login --client-id {TWO}`" in caught.value.hint
    flow.log_out()
    assert flow.choose_client(TWO).id == TWO


def test_a_client_app_is_not_mixed_with_a_persons_client(auth, monkeypatch):
    monkeypatch.setattr(credentials, "_taken", {})
    monkeypatch.setenv(credentials.ID, APP)
    monkeypatch.setenv(credentials.SECRET, SECRET)
    with pytest.raises(UsageError, match="names the client app"):
        flow.choose_client(CLIENT)
    assert flow.choose_client(None).secret == SECRET
