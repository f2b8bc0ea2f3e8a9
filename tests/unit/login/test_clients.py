"""Clients over a loopback Globus Auth: which token goes out, and what if none can."""

import base64
import errno
import logging
import os
import pickle
import subprocess
import sys
import threading

import pytest
from globus_auth import APP, CLIENT, COMPUTE, SECRET, TRANSFER

from hansa.core.errors import LoginError
from hansa.login import clients, credentials, flow, folder
from hansa.login.tokens import Tokens

ONE = "aaaaaaaa-0000-4000-8000-00000000000a"
TWO = "bbbbbbbb-0000-4000-8000-00000000000b"


@pytest.fixture
def collection(auth):
    auth.documents[ONE] = {"id": ONE, "display_name": "Eagle"}
    return ONE


@pytest.fixture
def app(auth, monkeypatch):
    monkeypatch.setenv(credentials.ID, APP)
    monkeypatch.setenv(credentials.SECRET, SECRET)
    monkeypatch.setattr(credentials, "_taken", {})
    return auth


def change(server=TRANSFER, **fields):
    """Change what is stored, as time or other people would."""
    tokens = Tokens(CLIENT)
    old = tokens.read()[server]
    data = {**old.to_dict(), **fields}
    tokens.write({server: type(old).from_dict(data)})


def test_requests_go_out_with_the_token_of_the_login(auth, log_in, collection):
    log_in()
    with clients.transfer_client() as transfer:
        assert transfer.get_endpoint(collection)["display_name"] == "Eagle"
    assert auth.grants("refresh_token") == []


def test_without_a_client_id_the_error_tells_how_to_get_one(auth):
    with pytest.raises(LoginError, match="no Globus client id") as caught:
        clients.transfer_client()
    assert "hansa login --client-id UUID" in caught.value.hint
    assert "thick client" in caught.value.hint


def test_without_a_login_the_error_has_the_exact_command(auth):
    folder.remember_client_id(CLIENT)
    with pytest.raises(LoginError, match="not logged in") as caught:
        clients.transfer_client([TWO, ONE.upper()])
    command = f"`hansa login --collection {ONE} --collection {TWO}`"
    assert command in caught.value.hint
    with pytest.raises(LoginError) as caught:
        clients.compute_client()
    assert "`hansa login`" in caught.value.hint


def test_an_expired_token_is_refreshed_once_and_kept(auth, log_in, collection):
    log_in()
    change(expires_at_seconds=1)
    with clients.transfer_client() as transfer:
        transfer.get_endpoint(collection)
        transfer.get_endpoint(collection)
    with clients.transfer_client() as later:
        later.get_endpoint(collection)
    assert len(auth.grants("refresh_token")) == 1


def test_a_token_that_the_service_refuses_is_refreshed(auth, log_in, collection):
    log_in()
    auth.expire()
    with clients.transfer_client() as transfer:
        assert transfer.get_endpoint(collection)["id"] == ONE


def test_threads_refresh_an_expired_token_only_once(auth, log_in):
    log_in()
    change(expires_at_seconds=1)
    together = threading.Barrier(4)

    def ask():
        header = clients.transfer_client().authorizer
        together.wait(timeout=30)
        header.get_authorization_header()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(auth.grants("refresh_token")) == 1


def test_a_revoked_refresh_token_names_the_command(auth, log_in, collection):
    log_in(ONE)
    auth.expire()
    auth.refreshes.clear()
    transfer = clients.transfer_client([ONE])
    with transfer, pytest.raises(LoginError, match="no longer takes") as caught:
        transfer.get_endpoint(collection)
    assert caught.value.transient
    assert f"`hansa login --collection {ONE}`" in caught.value.hint


def test_a_folder_that_is_away_for_a_while_is_waited_for(
    auth, log_in, collection, monkeypatch
):
    log_in()
    with clients.transfer_client() as transfer:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "check_private", stale)
            with pytest.raises(LoginError, match="Stale file handle") as caught:
                transfer.get_endpoint(collection)
            assert caught.value.transient
            assert "hansa whoami" in caught.value.hint
            with pytest.raises(LoginError):
                clients.transfer_client()
        assert transfer.get_endpoint(collection)["id"] == ONE


def stale():
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "tokens.json")


def test_a_login_without_refresh_tokens_ends(auth, log_in, collection):
    auth.refreshable = False
    log_in()
    change(expires_at_seconds=1)
    transfer = clients.transfer_client()
    with transfer, pytest.raises(LoginError, match="can't be refreshed"):
        transfer.get_endpoint(collection)


def test_a_kept_client_sees_a_login_of_another_process(auth, log_in, collection):
    log_in()
    auth.expire()
    auth.refreshes.clear()
    with clients.transfer_client() as transfer:
        with pytest.raises(LoginError):
            transfer.get_endpoint(collection)
        given = auth.grant(
            "urn:globus:auth:scope:transfer.api.globus.org:all",
            auth.identity,
            offline=True,
        )
        there = (
            "import sys; from hansa.login.tokens import Tokens\n"
            f"tokens = Tokens({CLIENT!r}); old = tokens.read()[{TRANSFER!r}]\n"
            "old.access_token, old.refresh_token = sys.argv[1:]\n"
            f"tokens.write({{{TRANSFER!r}: old}})"
        )
        words = given["access_token"], given["refresh_token"]
        subprocess.run([sys.executable, "-c", there, *words], check=True)
        assert transfer.get_endpoint(collection)["id"] == ONE


def test_a_refresh_does_not_undo_a_login_made_meanwhile(auth, log_in):
    log_in()
    tokens = Tokens(CLIENT)
    old = tokens.read()[TRANSFER]
    log_in(ONE)
    newer = tokens.read()[TRANSFER]
    late = type(old).from_dict({**old.to_dict(), "access_token": "late"})
    assert tokens.renew(old, late).access_token == newer.access_token
    assert tokens.read()[TRANSFER].access_token == newer.access_token


def test_tokens_of_another_client_or_environment_are_not_used(
    auth, log_in, monkeypatch
):
    log_in()
    assert Tokens(APP).read() == {}
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "production")
    assert Tokens(CLIENT).read() == {}


def test_compute_reads_and_writes_json_only(auth, log_in):
    log_in()
    client = clients.compute_client()
    assert client.app is None
    packed = client.fx_serializer.serialize({"op": "health"})
    assert client.fx_serializer.deserialize(packed) == {"op": "health"}
    pickled = base64.b64encode(pickle.dumps({"op": "health"})).decode()
    source = "def run():\n    return 1\n"
    for payload in (f"01\n{pickled}", f"00\n{pickled}", f"st\nrun:{source}"):
        with pytest.raises(Exception, match=r"disabled|Invalid header"):
            client.fx_serializer.deserialize(payload)


def test_compute_is_where_the_environment_says(auth, log_in, monkeypatch):
    log_in()
    assert clients.compute_client().web_service_address == "http://localhost:5000"
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_COMPUTE", f"{auth.url}/")
    assert clients.compute_client().web_service_address == auth.url


def test_a_client_app_needs_no_login_and_keeps_no_file(app, collection):
    with clients.transfer_client([ONE]) as transfer:
        transfer.get_endpoint(collection)
    (asked,) = app.grants("client_credentials")
    assert f"*https://auth.globus.org/scopes/{ONE}/data_access" in asked["scope"]
    assert not folder.path().exists()


def test_a_client_app_gets_another_token_for_another_consent(app):
    first = clients.transfer_client([ONE]).authorizer
    again = clients.transfer_client([ONE]).authorizer
    other = clients.transfer_client([ONE, TWO]).authorizer
    assert first is again
    assert other is not first
    assert len(app.grants("client_credentials")) == 2


def test_the_secret_leaves_the_environment(app):
    clients.compute_client()
    assert credentials.SECRET not in os.environ
    shown = subprocess.run(
        [sys.executable, "-c", "import os; print(dict(os.environ))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert SECRET not in shown.stdout
    assert credentials.client().secret == SECRET  # this process still knows it


def test_half_a_client_app_is_an_error(auth, monkeypatch):
    monkeypatch.setenv(credentials.ID, APP)
    monkeypatch.setattr(credentials, "_taken", {})
    with pytest.raises(LoginError, match="SECRET is not") as caught:
        clients.transfer_client()
    assert not caught.value.transient


def test_a_refused_client_app_names_the_variables(app, monkeypatch):
    monkeypatch.setenv(credentials.SECRET, "wrong")
    with pytest.raises(LoginError, match="refuses the client") as caught:
        clients.transfer_client()
    assert credentials.SECRET in caught.value.hint
    assert "wrong" not in f"{caught.value} {caught.value.to_json()}"


def test_no_secret_is_logged_or_shown(app, log_in, monkeypatch, caplog, collection):
    caplog.set_level(logging.DEBUG)
    said = [repr(credentials.client())]
    said += [repr(clients.transfer_client([ONE]).authorizer)]
    monkeypatch.delenv(credentials.ID)
    log_in(ONE)
    known = app.secrets()
    with clients.transfer_client([ONE]) as transfer:
        said += [repr(transfer.authorizer), repr(vars(clients.compute_client()))]
        transfer.get_endpoint(collection)
        app.expire()
        app.refreshes.clear()
        with pytest.raises(LoginError) as caught:
            transfer.get_endpoint(collection)
    said += [repr(caught.value), str(caught.value.to_json()), caplog.text]
    assert caplog.text
    assert not [one for one in known if one in "\n".join(said)]


def test_logging_out_revokes_every_token_and_removes_the_file(auth, log_in):
    log_in()
    assert flow.log_out()
    assert auth.tokens == {}
    assert auth.refreshes == {}
    assert not folder.tokens_path().exists()
    with pytest.raises(LoginError, match="not logged in"):
        clients.transfer_client()
    assert folder.read_client_id() == CLIENT  # the next login needs no --client-id


def test_logging_out_tells_when_globus_was_not_told(auth, log_in):
    log_in()
    auth.revoke_status = 400
    assert not flow.log_out()
    assert not folder.tokens_path().exists()


def test_logging_out_removes_a_damaged_file(auth, log_in):
    log_in()
    folder.tokens_path().write_text("{")
    with pytest.raises(LoginError, match="damaged") as caught:
        clients.transfer_client()
    assert "hansa logout" in caught.value.hint
    assert not flow.log_out()
    assert not folder.tokens_path().exists()


def test_compute_has_a_token_of_its_own(auth, log_in):
    log_in(transfer=False)
    clients.compute_client().authorizer.get_authorization_header()
    with pytest.raises(LoginError, match=TRANSFER):
        clients.transfer_client()
    assert COMPUTE in Tokens(CLIENT).read()


def test_a_missing_extra_is_named(monkeypatch):
    from hansa.core.errors import PluginError

    monkeypatch.setitem(sys.modules, "globus_sdk", None)
    with pytest.raises(PluginError, match="globus_sdk") as caught:
        clients.transfer_client()
    assert "pip install 'hansa[globus]'" in caught.value.hint
