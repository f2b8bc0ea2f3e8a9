"""What Globus says, in our words."""

from types import SimpleNamespace

import pytest

from hansa.core.errors import LoginError, StorageFull, TransferError
from hansa.mover import globus_words as words
from hansa.mover.base import Damaged
from hansa.mover.globus_words import TaskView

globus_sdk = pytest.importorskip("globus_sdk")


def answer(status: int, code: str, message: str = "said", **more):
    """Return the error that globus-sdk makes of an answer of the service."""
    body = {"code": code, "message": message, "request_id": "x", **more}
    request = SimpleNamespace(
        headers={}, method="GET", url="https://transfer.example/v0.10/x"
    )
    reply = SimpleNamespace(
        status_code=status,
        headers={"Content-Type": "application/json"},
        json=lambda: body,
        text=str(body),
        content=str(body).encode(),
        reason="reason",
        request=request,
        url=request.url,
    )
    return globus_sdk.TransferAPIError(reply)


def failed(fatal: str, *events: str):
    view = TaskView(status="FAILED", fatal=fatal)
    return words.failed(view, events, "smol/versions/3 from the server to polaris")


def refused(*given, **more):
    return words.refused(answer(*given, **more), "listing polaris:/x", "mover.path")


@pytest.mark.parametrize(
    ("fatal", "events", "kind", "transient", "said"),
    [
        ("QUOTA_EXCEEDED", (), StorageFull, False, "No space is left"),
        ("X", ("FTP: No space left on device",), StorageFull, False, "No space"),
        ("EXTERNAL_CHECKSUM_MISMATCH", (), Damaged, True, "manifest promises"),
        ("EXPIRED: expired", (), TransferError, True, "before the deadline"),
        ("EXPIRED", ("VERIFY_CHECKSUM",), TransferError, True, "deadline"),
        ("CANCELED: cancelled", (), TransferError, True, "was cancelled at Globus"),
        ("", (), TransferError, True, "no words"),
        ("SOMETHING_NEW", (), TransferError, True, "SOMETHING_NEW"),
    ],
)
def test_the_end_of_a_task(fatal, events, kind, transient, said):
    error = failed(fatal, *events)
    assert type(error) is kind
    assert (error.transient, said in error.message) == (transient, True)
    assert "smol/versions/3" in error.message
    assert error.hint


def test_an_expired_task_tells_what_kept_it_from_ending():
    error = failed("EXPIRED", "PERMISSION_DENIED: /eagle/x")
    assert "PERMISSION_DENIED: /eagle/x" in error.message
    assert "hansa login" in error.hint
    assert "mover.deadline" in failed("EXPIRED").hint


@pytest.mark.parametrize(
    ("status", "code", "transient", "said"),
    [
        (403, "EndpointPermissionDenied", False, "refuses it while listing polaris:/x"),
        (502, "ExternalError.DirListingFailed.LoginFailed", False, "refuses it"),
        (404, "EndpointNotFound", False, "knows no such collection"),
        (502, "ExternalError.DirListingFailed.ConnectFailed", True, "can't do it"),
        (502, "EndpointError", True, "collection's server can't do it"),
        (500, "InternalError", True, "answers 500"),
        (429, "TooManyRequests", True, "answers 429"),
        (409, "ClientError.Conflict.TooManyPendingJobs", True, "refuses while"),
        (400, "ClientError.BadRequest", False, "refuses while listing polaris:/x"),
    ],
)
def test_refused_calls(status, code, transient, said):
    error = refused(status, code)
    assert type(error) is TransferError
    assert (error.transient, said in error.message) == (transient, True)
    assert error.hint


def test_a_full_disk_behind_a_collection():
    error = refused(502, "ExternalError.MkdirFailed", "Disk quota exceeded")
    assert type(error) is StorageFull


def test_a_missing_consent_names_the_command():
    scope = (
        "urn:globus:auth:scope:transfer.api.globus.org:all[*https://auth.globus.org/"
        "scopes/aaaaaaaa-0000-4000-8000-00000000000a/data_access]"
    )
    error = refused(403, "ConsentRequired", required_scopes=[scope])
    assert type(error) is LoginError
    assert error.transient
    command = "hansa login --collection aaaaaaaa-0000-4000-8000-00000000000a"
    assert command in error.hint


@pytest.mark.parametrize(
    "code",
    ["EndpointPermissionDenied", "ExternalError.DirListingFailed.LoginFailed"],
)
def test_a_collection_that_wants_a_session_names_the_command(code):
    wanted = {"session_required_single_domain": ["anl.example"]}
    error = refused(403, code, authorization_parameters=wanted)
    assert type(error) is LoginError
    assert "hansa login --session domain=anl.example" in error.hint


def test_a_line_that_is_down():
    cause = ConnectionRefusedError("refused")
    down = globus_sdk.GlobusConnectionError("no way", cause)
    error = words.refused(down, "asking", "mover")
    assert type(error) is TransferError
    assert error.transient


@pytest.mark.parametrize(
    ("status", "code", "absent"),
    [
        (404, "ClientError.NotFound", True),
        (404, "NotFound", True),
        (404, "EndpointNotFound", False),
        (403, "EndpointPermissionDenied", False),
    ],
)
def test_only_a_missing_path_is_absent(status, code, absent):
    assert words.is_absent(answer(status, code)) is absent


@pytest.mark.parametrize(
    ("view", "ails", "said"),
    [
        (TaskView(status="ACTIVE"), False, None),
        (TaskView(status="ACTIVE", nice="OK"), False, None),
        (TaskView(status="ACTIVE", nice="Queued"), False, None),
        (TaskView(status="FAILED", nice="PERMISSION_DENIED"), False, None),
        (TaskView(status="ACTIVE", nice="PERMISSION_DENIED"), True, "maps you to"),
        (TaskView(status="ACTIVE", nice="ENDPOINT_ERROR"), True, "does not answer"),
        (TaskView(status="ACTIVE", nice="GC_NOT_CONNECTED"), True, "Connect Personal"),
        (TaskView(status="ACTIVE", nice="PAUSED"), True, "administrator"),
        (TaskView(status="INACTIVE"), True, "INACTIVE"),
        (TaskView(status="ACTIVE", nice="NEW_WORD"), True, "NEW_WORD"),
    ],
)
def test_what_ails_a_task_is_told_with_what_to_do(view, ails, said):
    assert view.ails is ails
    if ails:
        assert said in words.ailing(view)


def test_strangers_words_stay_on_one_line():
    assert words.clean("a\nb\x1b[31m c") == "a b [31m c"
    assert len(words.clean("x" * 5000)) < 400
