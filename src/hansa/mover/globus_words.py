"""What Globus Transfer says of a path or a task, in words and as errors of ours. Pure.

The service's own codes are words like ``PERMISSION_DENIED``; where they differ between
kinds of servers, the part that they share is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hansa.core.errors import GatewayError, HansaError, LoginError, TransferError
from hansa.login.words import explained
from hansa.mover import landing
from hansa.mover.base import Damaged

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError

WELL = frozenset({"", "OK", "QUEUED"})
"""Nice statuses of a task that needs nobody."""

_FULL = ("QUOTA", "NO_SPACE", "NO SPACE", "DISK_FULL", "FILE_SYSTEM_FULL")
_LATER = (409, 423)
_LONGEST = 300

_ADVICE = (
    (
        ("PERMISSION", "AUTH", "LOGIN", "CREDENTIAL"),
        "the account that the collection maps you to may not do this there, or its "
        "login is over: open the collection at app.globus.org, or run `hansa login`",
    ),
    (_FULL, "free space or raise the quota there"),
    (("FILE_NOT_FOUND", "NO_SUCH"), "a file was removed before it was sent"),
    (("CHECKSUM",), "a file arrived damaged and is sent again"),
    (("GC_",), "start Globus Connect Personal on that computer"),
    (("PAUSE",), "the collection's administrator paused it: ask there"),
    (
        ("CONNECT", "ENDPOINT", "TIMEOUT", "OFFLINE", "UNREACHABLE"),
        "the collection's server does not answer: see its page at app.globus.org and "
        "the facility's news",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskView:
    """How a task stands.

    Attributes:
        status: ``ACTIVE``, ``INACTIVE``, ``SUCCEEDED`` or ``FAILED``.
        bytes: Sent so far, what was sent again included.
        rate: Bytes per second, as the service counts.
        faults: Troubles so far that the service mended or still tries to.
        skipped: Files that were there already.
        nice: What ails it now, in one word; see `WELL`.
        details: The same in the server's own words.
        fatal: Why it failed: a code and words.
        seconds: From the submission to the end.
    """

    status: str
    bytes: int = 0
    rate: float = 0.0
    faults: int = 0
    skipped: int = 0
    nice: str = ""
    details: str = ""
    fatal: str = ""
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.status in ("SUCCEEDED", "FAILED")

    @property
    def ails(self) -> bool:
        """Whether the service can't go on by itself just now."""
        return not self.over and (
            self.status == "INACTIVE" or self.nice.upper() not in WELL
        )


def advice(code: str) -> str:
    """Return what to do about a nice status; empty: nothing is known."""
    upper = code.upper()
    return next((words for keys, words in _ADVICE if _has(upper, keys)), "")


def ailing(view: TaskView) -> str:
    """Return the line that people see while the service can't go on by itself."""
    word = view.nice if view.nice.upper() not in WELL else view.status
    todo = advice(word)
    return f"{word} ({todo})" if todo else word


def failed(view: TaskView, events: Iterable[str], where: str) -> HansaError:
    """Return what it means that a task failed.

    Args:
        view: Its end.
        events: Codes and words of its last errors, the newest first.
        where: What it should have written, for the message.
    """
    told = [view.fatal, *events]
    said = clean("; ".join(dict.fromkeys(one for one in told if one)))
    upper = said.upper()
    if _has(upper, _FULL):
        return landing.full(where)
    if "CHECKSUM" in upper and "EXPIRED" not in upper:
        return Damaged(
            f"{where} is not what its manifest promises, says Globus: {said}.",
            hint="It was damaged or is still being written.",
        )
    if "EXPIRED" in upper or "DEADLINE" in upper:
        return TransferError(
            f"Globus could not bring {where} before the deadline: {said}.",
            hint=_todo(upper) or "Give it longer: `mover.deadline`.",
        )
    if "CANCEL" in upper:
        return TransferError(
            f"The transfer to {where} was cancelled at Globus: {said}.",
            hint="It is submitted again; to end it for good, stop the run.",
        )
    return TransferError(
        f"Globus could not bring {where}: {said or 'no words'}.",
        hint=_todo(upper) or "Transfers are tried again by themselves.",
    )


def refused(error: Exception, doing: str, key: str) -> HansaError:
    """Return an error of globus-sdk as ours.

    Args:
        error: What a call raised.
        doing: What was tried, to follow "while".
        key: The option that names the place, as ``mover.path``.
    """
    known = explained(error, doing)
    if isinstance(known, LoginError):  # collections, too, ask for sessions
        return known
    known = _of_the_collection(error, doing, key) or known or _plain(error, doing)
    return TransferError.of(known) if isinstance(known, GatewayError) else known


def is_absent(error: Exception) -> bool:
    """Tell whether an answer means that there is no such path."""
    code = code_of(error)
    return (
        _status(error) == 404 and code.endswith("NotFound") and "Endpoint" not in code
    )


def code_of(error: Exception) -> str:
    """Return the service's code of an error, such as ``ConsentRequired``."""
    return str(getattr(error, "code", "") or "")


def clean(text: str) -> str:
    """Return a stranger's words on one line, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _of_the_collection(error: Exception, doing: str, key: str) -> HansaError | None:
    """Return what a collection's own server answered through the service."""
    code, said = code_of(error), _said(error)
    if "PermissionDenied" in code or "LoginFailed" in code:
        return TransferError(
            f"The collection refuses it while {doing}: {said}",
            hint="May the account that you are mapped to there do this, and is "
            f"`{key}` a path that the collection shares?",
            transient=False,
        )
    if _status(error) == 404 and "Endpoint" in code:
        return TransferError(
            f"Globus knows no such collection while {doing}: {said}",
            hint="Copy the UUID from the collection's page at app.globus.org.",
            transient=False,
        )
    if code.startswith(("ExternalError", "EndpointError")):
        if _has(said.upper(), _FULL):
            return landing.full(f"`{key}`, {doing}")
        return TransferError(
            f"The collection's server can't do it while {doing}: {said}",
            hint=f"Is `{key}` there? If the server is down, it is tried again; see its "
            "page at app.globus.org.",
        )
    return None


def _plain(error: Exception, doing: str) -> TransferError:
    return TransferError(
        f"Globus refuses while {doing}: {_said(error)}",
        hint="Compare the keys of `mover` with the collection's page at "
        "app.globus.org.",
        transient=_status(error) in _LATER,
    )


def _todo(said: str) -> str:
    words = advice(said)
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _said(error: Exception) -> str:
    status, code = _status(error), code_of(error)
    words = clean(str(getattr(error, "message", "") or error))
    return f"{words} ({status} {code})" if status else words


def _status(error: Exception) -> int:
    api: GlobusAPIError | None = error if hasattr(error, "http_status") else None  # type: ignore[assignment]
    return int(api.http_status) if api is not None else 0


def _has(text: str, keys: Iterable[str]) -> bool:
    return any(key in text for key in keys)
