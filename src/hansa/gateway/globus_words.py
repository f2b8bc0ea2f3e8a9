"""What the Globus Compute service, an endpoint and our function say, in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hansa.core.errors import GatewayError
from hansa.core.units import short_duration
from hansa.gateway.reply import last_object
from hansa.site.rpc import unwrap

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError

LONGEST: Final = 400
"""Characters that a stranger's words may have in a message of ours."""

BUSY_S: Final = 10.0
"""Seconds to wait if a service that is too busy does not say how long."""

_UNREAD: Final = "The answer is not JSON, and was not read"
_WHERE: Final = (
    "in `user_environment.yaml` of the endpoint's folder (for a block: in the "
    "template's `worker_init`)"
)
_USAGE = 2


@dataclass(frozen=True, slots=True)
class Said:
    """A refusal by the service.

    Attributes:
        status: The HTTP status.
        code: The service's word for it, or empty.
        text: Its sentence about it.
    """

    status: int
    code: str
    text: str

    @classmethod
    def of(cls, error: GlobusAPIError) -> Said:
        """Return what an error of globus-sdk holds."""
        body = error.raw_json if isinstance(error.raw_json, Mapping) else {}
        text = body.get("reason") or error.message or error.http_reason
        return cls(error.http_status, str(error.code or ""), short(str(text)))

    def __str__(self) -> str:
        """Return the refusal on one line."""
        return f"{self.text} ({f'{self.status} {self.code}'.strip()})"


@dataclass(frozen=True, slots=True)
class _Case:
    """What a refusal or failure is known by, and what it means.

    `{e}` and `{f}` stand for the endpoint and the function.
    """

    sign: str
    message: str
    hint: str
    transient: bool = False

    def error(self, endpoint: str, function: str, said: object) -> GatewayError:
        ids = {"e": endpoint or "?", "f": function or "?"}
        return GatewayError(
            f"{self.message.format(**ids)}: {said}",
            hint=self.hint.format(**ids),
            transient=self.transient,
        )


_NOT_ALLOWED = _Case(
    r"FUNCTION_NOT_(PERMITTED|ALLOWED)|Function \S+ not permitted",
    "The endpoint {e} may not run the function {f}",
    "Ask the owner of the endpoint to add {f} to `allowed_functions` in its "
    "config.yaml and to restart it. `hansa function show {f}` prints its text.",
)
_IDENTITY_HINT = (
    "`hansa whoami` says who you are; ask the owner of the endpoint {e} to map this "
    "identity to an account, or log in as another with `hansa logout && hansa login`."
)
_REFUSALS: Sequence[_Case] = (
    _NOT_ALLOWED,
    _Case(
        "ENDPOINT_ACCESS_FORBIDDEN",
        "You may not use the endpoint {e}",
        "`hansa whoami` says who you are; ask the owner of the endpoint {e} to admit "
        "this identity, or log in as another with `hansa logout && hansa login`.",
    ),
    _Case(
        "ENDPOINT_NOT_FOUND",
        "There is no endpoint {e}",
        "Is `gateway.endpoint` right? `globus-compute-endpoint list` at the facility "
        "shows the id.",
    ),
    _Case(
        "FUNCTION_NOT_FOUND",
        "There is no function {f}",
        "Is `gateway.function` right? `hansa function register` registers one and "
        "prints its id.",
    ),
    _Case(
        "FUNCTION_ACCESS_FORBIDDEN",
        "The function {f} is somebody else's and not for everybody",
        "Register your own with `hansa function register`, write its id into "
        "`gateway.function`, and have it allowed at the endpoint.",
    ),
    _Case(
        "PAYLOAD_TOO_LARGE",
        "Globus takes no request of this size",
        "This should not be; please tell us of it.",
    ),
)
_FAILURES: Sequence[_Case] = (
    _NOT_ALLOWED,
    _Case(
        "untrusted identity|failed to map to a local|local user does not exist",
        "The endpoint {e} does not know you",
        _IDENTITY_HINT,
    ),
    _Case(
        "Command too old or skew",
        "The clock of the endpoint {e} is wrong",
        "Tell its owner: it may be 3 minutes wrong at most. Is NTP running there?",
        transient=True,
    ),
    _Case(
        r"serializer \S+ disabled|Strategy failures|All strategies failed",
        "The endpoint {e} refuses the form of the request",
        "Its owner must list JSONData and PureSourceTextInspect as "
        "`allowed_serializers` of the engine.",
    ),
    _Case(
        _UNREAD,
        "The endpoint {e} answers in a form that is never read",
        "Something else than Hansa's function answered, or the endpoint is too old to "
        "write JSON: its owner must install globus-compute-endpoint 4.19 or newer.",
    ),
    _Case(
        r"WorkerLost|ManagerLost|ExecutorScalingFailed|BadStateException",
        "The endpoint {e} lost the process that should answer",
        "Hansa asks again. If it goes on, its owner should look into the endpoint's "
        "log.",
        transient=True,
    ),
    _Case(
        r"(?i)start(ing)? (up )?(the )?(user )?endpoint|endpoint startup|"
        r"endpoint misconfiguration|another instance of this endpoint",
        "The endpoint {e} can't start a process for you",
        "Its owner finds the cause in the endpoint's log (endpoint.log); often the "
        "template names something that is not there.",
        transient=True,
    ),
)


def refused(said: Said, endpoint: str, function: str) -> GatewayError | None:
    """Return what a refusal by the service means, if it is of the endpoint."""
    for case in _REFUSALS:
        if re.search(case.sign, f"{said.code} {said.text}"):
            return case.error(endpoint, function, said)
    return None


def failed(text: str, endpoint: str, function: str) -> GatewayError:
    """Return what the failure of a task means; the remote text may be long."""
    for case in _FAILURES:
        for line in text.splitlines():
            if re.search(case.sign, line):
                return case.error(endpoint, function, short(line))
    return GatewayError(
        f"The endpoint {endpoint} failed to answer: {last_line(text)}",
        hint="Its owner finds more in the endpoint's log.",
    )


def unknown(said: Said, doing: str) -> GatewayError:
    """Return the error for a refusal that nobody foresaw."""
    return GatewayError(
        f"Globus refuses while {doing}: {said}",
        hint="`hansa check` looks at the login and the endpoint; see also "
        "https://status.globus.org.",
        transient=False,
    )


def nonsense(doing: str, error: Exception) -> GatewayError:
    """Return the error for an answer of the service that lacks what it must have."""
    return GatewayError(
        f"Globus answered nonsense while {doing}: {type(error).__name__} {error}.",
        hint="Hansa tries again; see https://status.globus.org.",
    )


def unread(error: Exception) -> str:
    """Return what stands for a result that is not JSON."""
    return f"{_UNREAD}: {short(str(error))}"


def answered(result: object, endpoint: str, function: str) -> dict[str, Any]:
    """Return the reply's data out of what the function returned.

    Args:
        result: Its whole result, from JSON.
        endpoint: Where it ran.
        function: Its id.

    Raises:
        GatewayError: There is no reply in it.
        HansaError: What the agent answered.
    """
    if not isinstance(result, Mapping) or not isinstance(result.get("stdout"), str):
        raise GatewayError(
            f"The function {function} is not Hansa's: it returned "
            f"{short(repr(result))}.",
            hint=f"`hansa function check {function}` compares its text.",
            transient=False,
        )
    trouble = str(result.get("trouble") or "")
    stderr = str(result.get("stderr") or "")
    if trouble in ("expired", "unset", "missing"):
        raise _not_asked(trouble, endpoint, stderr)
    reply = last_object(result["stdout"])
    if reply is None:
        raise _no_reply(trouble, endpoint, result)
    return unwrap(reply)


def _not_asked(trouble: str, endpoint: str, said: str) -> GatewayError:
    if trouble == "expired":
        return GatewayError(
            f"The endpoint {endpoint} came to the request {said} s after its end, by "
            "its own clock, and dropped it.",
            hint="Is the clock right there, and here? Else Hansa asks again.",
        )
    if trouble == "unset":
        return GatewayError(
            f"The endpoint {endpoint} does not say where its site.yaml is.",
            hint=f"Its owner must set HANSA_SITE {_WHERE}; `hansa site "
            "globus-endpoint` writes such a folder.",
            transient=False,
        )
    return GatewayError(
        f"There is no hansa at the endpoint {endpoint}: {short(said)}",
        hint=f"Its owner must install hansa, and set HANSA_PROGRAM {_WHERE} to the "
        "whole path of the program.",
        transient=False,
    )


def _no_reply(trouble: str, endpoint: str, result: Mapping[str, Any]) -> GatewayError:
    code = result.get("returncode")
    said = last_line(f"{result['stdout']}\n{result.get('stderr') or ''}")
    if trouble == "slow":
        return GatewayError(
            f"The site agent at the endpoint {endpoint} was ended, as it took too "
            f"long: {said}",
            hint="Is its machine or file system very slow? Raise `gateway.timeout`.",
        )
    why = "printed too much" if trouble == "loud" else f"exit code {code}"
    return GatewayError(
        f"The answer of the endpoint {endpoint} is no reply ({why}): {said}",
        hint="Its owner should run `$HANSA_PROGRAM site check --site $HANSA_SITE`.",
        transient=code != _USAGE,
    )


def offline(endpoint: str, known_s: float) -> GatewayError:
    """Return the error for an endpoint that is not there.

    Args:
        endpoint: Which one.
        known_s: Seconds for which it has been seen offline from here.
    """
    since = f", for at least {short_duration(known_s)}" if known_s >= 1 else ""
    return GatewayError(
        f"The endpoint {endpoint} is offline{since}.",
        hint="Its owner starts it with `globus-compute-endpoint start NAME`; Hansa "
        "asks again until then.",
    )


def silent(endpoint: str, op: object, timeout: float, known: str) -> GatewayError:
    """Return the error for a request without an answer.

    Args:
        endpoint: Who should have answered.
        op: What was asked.
        timeout: Seconds that were waited.
        known: What else is known, as a sentence or more.
    """
    return GatewayError(
        f"The endpoint {endpoint} has not answered {op!r} within {timeout:g} s. "
        f"{known}",
        hint="Hansa asks again; whatever is answered late is not looked at.",
    )


def retry_after(header: str | None) -> float:
    """Return the seconds that a header ``Retry-After`` asks for."""
    try:
        return min(max(float(header or BUSY_S), 1.0), 300.0)
    except ValueError:
        return BUSY_S


def last_line(text: str) -> str:
    """Return the last line that says something: of a traceback it is the cause."""
    lines = [line.strip(" *") for line in text.splitlines() if line.strip(" *-")]
    return short(lines[-1]) if lines else "no words"


def short(text: str) -> str:
    """Return a stranger's words on one line, without control characters."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    line = " ".join(plain.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
