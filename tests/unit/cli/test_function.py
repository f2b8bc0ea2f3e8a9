"""`hansa function register`, `show` and `check`, over a pretended service."""

import json

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.core.errors import GatewayError, PluginError
from hansa.gateway import globus_check, globus_rest
from hansa.gateway.globus_rest import Busy

F = "22222222-2222-4222-8222-222222222222"
E = "11111111-1111-4111-8111-111111111111"


class FakeRest:
    def __init__(self):
        self.registered = []
        self.text = globus_check.source()
        self.closed = False

    def register(self, *words):
        self.registered.append(words)
        return F

    def function(self, function):
        assert function == F
        return {"function_name": globus_check.NAME, "function_code": self.text}

    def close(self):
        self.closed = True


@pytest.fixture
def rest(monkeypatch):
    made = FakeRest()
    monkeypatch.setattr(globus_rest, "GlobusRest", lambda: made)
    yield made
    assert made.closed


def hansa(*words):
    result = CliRunner().invoke(app, ["function", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_register_prints_the_id_alone_and_says_who_needs_it(rest):
    result = hansa("register")
    assert result.stdout == f"{F}\n"
    assert f"function: {F}" in result.stderr
    assert f"hansa site globus-endpoint --function {F}" in result.stderr
    ((name, text, about, endpoint),) = rest.registered
    assert (name, endpoint) == (globus_check.NAME, None)
    assert text == globus_check.source()
    assert "hansa site rpc" in about


def test_a_high_assurance_endpoint_gets_a_function_of_its_own(rest):
    hansa("register", "--high-assurance", E)
    assert rest.registered[0][-1] == E


def test_show_without_an_id_needs_no_service():
    assert hansa("show").stdout == globus_check.source()


def test_show_prints_what_is_registered(rest):
    rest.text = "def other(): ...\n"
    result = hansa("show", F)
    assert result.stdout == rest.text
    assert "not the text" in result.stderr
    data = json.loads(hansa("show", F, "--json").stdout)["data"]
    assert data == {"function": F, "text": rest.text, "ours": False}


def test_show_hides_nothing_of_a_strangers_text(rest):
    rest.text = "import os  # \x1b[2K\u202e\r\n\tok = 'ü'\n"
    shown = hansa("show", F).stdout
    assert shown == "import os  # \\x1b[2K\\u202e\\r\n\tok = 'ü'\n"


def test_check_tells_by_its_exit_code_whether_the_text_is_ours(rest):
    assert hansa("check", F).exit_code == 0
    rest.text = rest.text.replace("0", "1", 1)
    result = hansa("check", F)
    assert result.exit_code == 1
    assert "another text" in result.stdout
    envelope = json.loads(hansa("check", F, "--json").stdout)
    assert envelope["exit_code"] == 1
    assert envelope["data"] == {"function": F, "ours": False}


def test_a_busy_service_is_a_sentence(rest, monkeypatch):
    def busy(function):
        raise Busy(12.0)

    monkeypatch.setattr(rest, "function", busy)
    with pytest.raises(GatewayError) as caught:
        hansa("check", F)
    assert "12 s" in caught.value.hint


def test_no_id_is_no_usage():
    assert hansa("check", "polaris").exit_code == 2


def test_a_missing_extra_is_told_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "globus_compute_sdk", None)
    with pytest.raises(PluginError) as caught:
        hansa("register")
    assert "pip install 'hansa[globus]'" in caught.value.hint
