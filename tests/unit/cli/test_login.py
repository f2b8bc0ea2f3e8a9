"""`hansa login`, `logout` and `whoami` over a loopback Globus Auth."""

import json
import os
import subprocess
import sys

import pytest
from globus_auth import APP, CLIENT, SECRET, running
from typer.testing import CliRunner

from hansa.cli import login as verbs
from hansa.cli.app import app as command_line
from hansa.cli.app import main
from hansa.login import credentials, folder
from hansa.login.tokens import Tokens
from hansa.spec import federation_from_text

ONE = "aaaaaaaa-0000-4000-8000-00000000000a"
TWO = "bbbbbbbb-0000-4000-8000-00000000000b"
HERE = "cccccccc-0000-4000-8000-00000000000c"
"""Ids of collections."""


@pytest.fixture
def auth(monkeypatch, tmp_path):
    with running(monkeypatch, tmp_path / "globus") as service:
        yield service


@pytest.fixture
def person(auth, monkeypatch):
    """Sit at a terminal: open the address that is shown, and paste the code."""
    shown = []

    def tell(text):
        shown.append(text)

    monkeypatch.setattr(verbs, "say", tell)
    monkeypatch.setattr(verbs, "_need_terminal", lambda: None)

    def paste():
        address = next(
            line
            for text in reversed(shown)
            for line in text.splitlines()
            if line.startswith("http")
        )
        return f"  {auth.browse(address)} "

    monkeypatch.setattr("builtins.input", paste)
    return auth


@pytest.fixture
def app(auth, monkeypatch):
    monkeypatch.setattr(credentials, "_taken", {})
    monkeypatch.setenv(credentials.ID, APP)
    monkeypatch.setenv(credentials.SECRET, SECRET)
    return auth


def hansa(*words):
    """Run a command in this process."""
    return CliRunner().invoke(command_line, words)


def separately(*words, **variables):
    """Run a command in a process of its own, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "hansa.cli", *words],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_person_logs_in_once_and_is_known_then(person):
    done = hansa("login", "--client-id", CLIENT, "--collection", ONE)
    assert done.exit_code == 0, done.output
    assert "ada@anl.gov" in done.stdout
    assert ONE in done.stdout
    again = hansa("login")  # the client id is remembered
    assert again.exit_code == 0, again.output
    shown = json.loads(hansa("whoami", "--json").stdout)
    assert shown["status"] == "ok"
    assert shown["data"]["username"] == "ada@anl.gov"
    assert shown["data"]["client"] == CLIENT
    assert shown["data"]["consents"] == [ONE]
    out = hansa("whoami").stdout + json.dumps(shown) + done.output
    assert not [one for one in person.secrets() if one in out]


def test_logging_out_ends_it(person):
    hansa("login", "--client-id", CLIENT)
    assert hansa("logout").exit_code == 0
    assert not folder.tokens_path().exists()
    shown = separately("whoami", "--json")
    assert shown.returncode == 5
    error = json.loads(shown.stdout)["error"]
    assert error["code"] == "LOGIN"
    assert "`hansa login`" in error["hint"]


def test_a_logout_that_globus_did_not_hear_of_is_an_error(person):
    hansa("login", "--client-id", CLIENT)
    person.revoke_status = 400
    done = separately("logout")
    assert done.returncode == 5
    assert "settings/consents" in done.stderr
    assert not folder.tokens_path().exists()


def test_no_terminal_no_question(auth):
    done = separately("login", "--client-id", CLIENT)
    assert done.returncode == 2
    assert "needs a person at a terminal" in done.stderr
    assert auth.asked == []


def test_without_a_client_id_one_is_told_how_to_get_it(auth):
    done = separately("login")
    assert done.returncode == 5
    assert "thick client" in done.stderr
    assert "--client-id" in done.stderr
    said = hansa("login", "--help").stdout
    assert "thick" in said
    assert "HANSA_GLOBUS_CLIENT_ID" in said


def test_no_code_is_no_login(person, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda: " ")
    done = hansa("login", "--client-id", CLIENT)
    assert "No code" in str(done.exception)
    assert Tokens(CLIENT).read() == {}


def test_a_client_app_logs_in_without_a_terminal(app):
    done = separately("-vv", "login", "--collection", ONE)
    assert done.returncode == 0, done.stderr
    assert APP in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert not folder.path().exists()
    (asked, *_) = [
        one for one in app.grants("client_credentials") if ONE in one["scope"]
    ]
    assert "data_access" in asked["scope"]


def test_a_wrong_secret_is_told_but_not_shown(app):
    done = separately("login", **{credentials.SECRET: "not-the-secret"})
    assert done.returncode == 5
    assert "refuses the client" in done.stderr
    assert "not-the-secret" not in done.stdout + done.stderr


def test_every_hansa_process_hides_the_secret_first(monkeypatch):
    monkeypatch.setattr(credentials, "_taken", {})
    monkeypatch.setenv(credentials.SECRET, SECRET)
    monkeypatch.setattr(sys, "argv", ["hansa", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert credentials.SECRET not in os.environ


FEDERATION = f"""\
name: smol
model: {{trainer: softmax, source: zeros, dtype: float32}}
task: digits
strategy: {{name: fedavg}}
stop: {{rounds: 1}}
defaults: {{work: {{steps: 1}}}}
facilities:
  polaris:
    gateway: {{type: globus_compute, endpoint: {TWO}, function: {HERE}}}
    mover:
      type: globus
      collection: {ONE}
      path: /eagle/hansa
      data_access: true
      here: {{collection: {HERE}, root: /data, path: /data, data_access: false}}
  near:
    gateway: {{type: local, site: near.yaml}}
    mover: posix
"""


class Part:
    """Stands for a plug-in's choice in a federation."""

    def __init__(self, type_, **options):
        self.type, self.options = type_, options


class Facility:
    def __init__(self, gateway, mover):
        self.gateway, self.mover = gateway, mover


class Federation:
    def __init__(self, **facilities):
        self.facilities = facilities


def globus(collection, *, data_access, here=None):
    return Part("globus", collection=collection, data_access=data_access, here=here)


def test_a_login_for_a_federation_asks_for_what_its_facilities_need():
    here = {"collection": HERE, "data_access": True}
    polaris = Facility(
        Part("globus_compute"), globus(ONE.upper(), data_access=True, here=here)
    )
    aurora = Facility(Part("ssh"), globus(TWO, data_access=False, here=here))
    found = verbs.needs_of(Federation(polaris=polaris, aurora=aurora))
    assert (found.transfer, found.compute) == (True, True)
    assert found.collections == (ONE, HERE)


def test_a_federation_without_compute_asks_for_transfer_only():
    found = verbs.needs_of(
        Federation(a=Facility(Part("ssh"), globus(ONE, data_access=False)))
    )
    assert (found.transfer, found.compute, found.collections) == (True, False, ())


def test_a_federation_without_globus_needs_no_login(person, tmp_path):
    file = tmp_path / "federation.yaml"
    plain = (
        FEDERATION.partition("  polaris:")[0]
        + "  near:"
        + FEDERATION.partition("  near:")[2]
    )
    file.write_text(plain)
    (tmp_path / "near.yaml").write_text("")
    done = hansa("login", str(file), "--client-id", CLIENT)
    assert "reached through Globus" in str(done.exception)
    assert person.asked == []


def test_a_federation_file_is_read_for_its_needs():
    found = verbs.needs_of(federation_from_text(FEDERATION))
    assert (found.transfer, found.compute, found.collections) == (True, True, (ONE,))
