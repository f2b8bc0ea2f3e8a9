"""Errors of globus-sdk in our words, with the command that mends them."""

import json
import shlex

import globus_sdk
import pytest
import requests
from globus_auth import APP, SECRET
from typer.testing import CliRunner

from hansa.cli.app import app as command_line
from hansa.core.errors import GatewayError, LoginError, SpecError
from hansa.login import credentials
from hansa.login.flow import Session
from hansa.login.words import explained

ONE = "aaaaaaaa-0000-4000-8000-00000000000a"
TWO = "bbbbbbbb-0000-4000-8000-00000000000b"
ALL = "urn:globus:auth:scope:transfer.api.globus.org:all"
DOING = "moving files to polaris"
TOKEN = "a-token-that-was-sent"  # noqa: S105 - of a pretended request


@pytest.fixture(autouse=True)
def _person(monkeypatch):
    monkeypatch.delenv(credentials.ID, raising=False)
    monkeypatch.delenv(credentials.SECRET, raising=False)


def refused(status, body, kind=globus_sdk.TransferAPIError):
    """Return the error of a client whose request was answered so."""
    response = requests.Response()
    response.status_code = status
    response.reason = "Reason"
    response.headers["Content-Type"] = "application/json"
    response._content = json.dumps(body).encode()
    response.request = requests.Request(
        "POST", "https://x.globus.org", headers={"Authorization": f"Bearer {TOKEN}"}
    ).prepare()
    response.url = "https://x.globus.org"
    return kind(response)


def consent(*collections):
    needs = " ".join(
        f"*https://auth.globus.org/scopes/{one}/data_access" for one in collections
    )
    return refused(
        403,
        {
            "code": "ConsentRequired",
            "message": "Missing required data_access consent",
            "request_id": "abc",
            "required_scopes": [f"{ALL}[{needs}]"],
        },
    )


def session(**parameters):
    return refused(
        403,
        {
            "code": "AuthorizationRequired",
            "message": "Your session is too old",
            "authorization_parameters": parameters,
        },
    )


def command(error):
    """Return the words of the command in a hint."""
    return shlex.split(error.hint.split("`")[1])


def test_a_missing_consent_names_the_collections():
    found = explained(consent(TWO, ONE), DOING)
    assert isinstance(found, LoginError)
    assert found.transient
    assert DOING in found.message
    assert command(found) == [
        "hansa",
        "login",
        "--collection",
        ONE,
        "--collection",
        TWO,
    ]


def test_a_client_app_without_a_consent_is_sent_to_the_federation_file(monkeypatch):
    monkeypatch.setenv(credentials.ID, APP)
    monkeypatch.setenv(credentials.SECRET, SECRET)
    found = explained(consent(ONE), DOING)
    assert isinstance(found, LoginError)
    assert "data_access: true" in found.hint
    assert ONE in found.message


@pytest.mark.parametrize(
    ("parameters", "options", "expected"),
    [
        (
            {"session_required_identities": ["ada@anl.gov", ONE], "prompt": "login"},
            ["identity=ada@anl.gov", f"identity={ONE}", "fresh"],
            Session(identities=("ada@anl.gov", ONE), fresh=True),
        ),
        (
            {"session_required_single_domain": ["anl.gov"]},
            ["domain=anl.gov"],
            Session(domains=("anl.gov",)),
        ),
        (
            {"session_required_policies": ONE, "session_required_mfa": True},
            [f"policy={ONE}", "mfa"],
            Session(policies=(ONE,), mfa=True),
        ),
    ],
)
def test_a_session_that_is_too_old_names_what_the_next_must_have(
    parameters, options, expected
):
    found = explained(session(**parameters), DOING)
    assert isinstance(found, LoginError)
    words = command(found)
    assert words[2::2] == ["--session"] * len(options)
    assert words[3::2] == options
    assert Session.parse(options) == expected  # what `hansa login` makes of it


def test_words_of_a_service_never_become_shell_text():
    found = explained(
        session(
            session_message="Log in\nagain \x1b[31m`rm -rf ~`",
            session_required_identities=["a; rm -rf ~", "$(id)", "ada@anl.gov"],
        ),
        DOING,
    )
    assert command(found) == ["hansa", "login", "--session", "identity=ada@anl.gov"]
    assert found.message.isprintable()


def test_a_globus_error_of_auth_for_dependent_consents_is_known():
    body = {
        "error": "dependent_consent_required",
        "errors": [
            {
                "unapproved_scopes": [
                    f"{ALL}[*https://auth.globus.org/scopes/{ONE}/data_access]"
                ]
            }
        ],
    }
    found = explained(refused(403, body, globus_sdk.AuthAPIError), DOING)
    assert command(found) == ["hansa", "login", "--collection", ONE]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"code": "AuthenticationFailed", "message": "Token is not active"}),
        (400, {"error": "invalid_grant"}),
    ],
)
def test_a_token_that_is_not_taken_wants_a_login(status, body):
    found = explained(refused(status, body, globus_sdk.AuthAPIError), DOING)
    assert isinstance(found, LoginError)
    assert command(found) == ["hansa", "login"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_or_absent_service_passes(status):
    found = explained(refused(status, {"code": "Busy", "message": "later"}), DOING)
    assert isinstance(found, GatewayError)
    assert found.transient
    assert str(status) in found.message


def test_a_lost_line_passes():
    cause = requests.ConnectionError("refused")
    found = explained(globus_sdk.GlobusConnectionError("ConnectionError", cause), DOING)
    assert isinstance(found, GatewayError)
    assert found.transient
    assert DOING in found.message


@pytest.mark.parametrize(
    "error",
    [
        refused(404, {"code": "EndpointNotFound", "message": "No such endpoint"}),
        refused(403, {"code": "PermissionDenied", "message": "not yours"}),
        refused(400, {"code": "ClientError.BadRequest", "message": "bad path"}),
        ValueError("not theirs"),
    ],
)
def test_what_is_not_of_the_login_or_the_line_is_the_callers(error):
    assert explained(error, DOING) is None


def test_our_own_errors_stay_as_they_are():
    ours = SpecError("It says so.")
    assert explained(ours, DOING) is ours


def test_a_collection_that_has_no_such_consent_is_told():
    body = {
        "error": "unknown_scope",
        "error_description": f"scopes/{ONE}/data_access is unknown",
        "errors": [
            {"code": "UNKNOWN_SCOPE_ERROR", "detail": "Unknown scope", "title": "x"}
        ],
    }
    found = explained(refused(400, body, globus_sdk.AuthAPIError), DOING)
    assert isinstance(found, LoginError)
    assert not found.transient
    assert "data_access: false" in found.hint


def test_what_was_sent_is_not_in_the_words():
    for status in (401, 403, 429, 500):
        found = explained(refused(status, {"code": "X", "message": "no"}), DOING)
        assert found is None or TOKEN not in json.dumps(found.to_json())


def test_the_commands_in_the_hints_are_commands_of_ours():
    for error in (consent(ONE), session(session_required_mfa=True)):
        words = command(explained(error, DOING))
        shown = CliRunner().invoke(command_line, [*words[1:], "--help"])
        assert shown.exit_code == 0, shown.output
