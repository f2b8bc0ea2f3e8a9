"""What strangers say, in our words: named, with the next step, lasting or not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import GatewayError, PolicyError
from hansa.gateway import globus_words as words
from hansa.gateway.globus_words import Said
from hansa.site import rpc

E, F = "e-id", "f-id"
WHERE = "in `user_environment.yaml` of the endpoint's folder (for a block: in the"


@pytest.mark.parametrize(
    ("code", "told", "hint"),
    [
        ("FUNCTION_NOT_PERMITTED", "may not run the function f-id", "add f-id to `all"),
        ("ENDPOINT_ACCESS_FORBIDDEN", "may not use the endpoint e-id", "hansa whoami"),
        ("ENDPOINT_NOT_FOUND", "no endpoint e-id", "gateway.endpoint"),
        ("FUNCTION_NOT_FOUND", "no function f-id", "hansa function register"),
        ("FUNCTION_ACCESS_FORBIDDEN", "somebody else's", "hansa function register"),
        ("TASK_PAYLOAD_TOO_LARGE", "no request of this size", "tell us"),
    ],
)
def test_refusals_by_the_service_are_named_and_last(code, told, hint):
    error = words.refused(Said(403, code, "the service's words"), E, F)
    assert told in error.message
    assert f"the service's words (403 {code})" in error.message
    assert hint in error.hint
    assert not error.transient


def test_what_is_not_of_the_endpoint_is_for_others_to_explain():
    assert words.refused(Said(401, "FORBIDDEN", "invalid token"), E, F) is None


TRACEBACK = """\
Traceback (most recent call last):
  File "x.py", line 1, in f
parsl.executors.high_throughput.errors.WorkerLost: Task failure due to loss of worker 3
"""


@pytest.mark.parametrize(
    ("text", "told", "hint", "transient"),
    [
        (
            f"Function {F} not permitted on endpoint {E}",
            "may not run",
            "allowed",
            False,
        ),
        ("Identity failed to map to a local user name.", "not know", "whoami", False),
        ("Ignoring start request for untrusted identity.", "not know", "whoami", False),
        ("Ignoring command\nCommand too old or skew between", "clock", "NTP", True),
        ("Data serializer JSONData disabled by current", "form", "JSONData", False),
        (TRACEBACK, "lost the process", "log", True),
        ("Unable to start user endpoint process for me", "start", "endpoint.log", True),
        ("General or unknown failure starting user endpoint", "start", "log", True),
        ("Another instance of this endpoint is running.", "start", "log", True),
        ("Traceback\nZeroDivisionError: no", "ZeroDivisionError: no", "log", True),
        ("", "no words", "log", True),
        (words.unread(ValueError("x")), "never read", "4.19", False),
    ],
)
def test_failures_of_tasks_are_told_apart(text, told, hint, transient):
    error = words.failed(text, E, F)
    assert told in error.message
    assert E in error.message
    assert hint in error.hint
    assert error.transient is transient


def returned(stdout="", stderr="", code=0, trouble=""):
    return {"trouble": trouble, "returncode": code, "stdout": stdout, "stderr": stderr}


def test_a_reply_is_found_behind_a_banner():
    reply = f"Welcome!\n{json.dumps(rpc.reply({'a': 1}))}\n"
    assert words.answered(returned(reply), E, F) == {"a": 1}


def test_the_agents_errors_come_under_their_own_class():
    text = json.dumps(rpc.refusal(PolicyError("too many nodes", hint="fewer")))
    with pytest.raises(PolicyError, match="too many nodes"):
        words.answered(returned(text), E, F)


@pytest.mark.parametrize(
    ("result", "told", "hint", "transient"),
    [
        (None, "not Hansa's", "hansa function check f-id", False),
        ({"stdout": 3}, "not Hansa's", "hansa function check f-id", False),
        (returned(trouble="expired", stderr="70"), "70 s after", "clock", True),
        (returned(trouble="unset"), "site.yaml", f"HANSA_SITE {WHERE}", False),
        (
            returned(trouble="missing", stderr="h: no"),
            "h: no",
            f"HANSA_PROGRAM {WHERE}",
            False,
        ),
        (returned(trouble="slow"), "took too long", "gateway.timeout", True),
        (returned("x", trouble="loud", code=-9), "too much", "site check", True),
        (returned("", "no such option", 2), "exit code 2", "site check", False),
        (returned("", "Traceback\nOSError: full", 1), "OSError: full", "check", True),
    ],
)
def test_what_is_no_reply_is_told_apart(result, told, hint, transient):
    with pytest.raises(GatewayError) as caught:
        words.answered(result, E, F)
    assert told in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.transient is transient


def test_an_offline_endpoint_says_since_when_it_is_known():
    assert "offline." in words.offline(E, 0.0).message
    assert "offline, for at least 2h05." in words.offline(E, 7500.0).message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 10.0), ("4", 4.0), ("0", 1.0), ("99999", 300.0), ("Fri, 1 Jan", 10.0)],
)
def test_how_long_to_be_patient(header, seconds):
    assert words.retry_after(header) == seconds


@given(st.text())
def test_a_strangers_words_are_one_short_printable_line(text):
    line = words.short(text)
    assert line.isprintable()
    assert len(line) <= words.LONGEST + 1
    assert words.last_line(text).isprintable()
