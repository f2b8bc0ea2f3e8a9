"""What went wrong on the way to a Globus service, and the command that mends it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hansa.core.errors import GatewayError, HansaError, LoginError
from hansa.login.credentials import SECRET, client_id_of_app
from hansa.login.extra import extra

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError
    from globus_sdk.gare import GlobusAuthorizationParameters

_DATA_ACCESS = re.compile(r"scopes/([0-9a-fA-F-]{36})/data_access")
_PLAIN = re.compile(r"[A-Za-z0-9@._+-]{1,200}")
_TOKEN_GONE = frozenset({"invalid_grant", "invalid_token"})
_AWAY = frozenset({408, 425, 429})
_LONGEST = 300


def explained(error: Exception, doing: str) -> HansaError | None:
    """Return an error of globus-sdk in our words, if it is of the login or the line.

    Args:
        error: Whatever a Globus client raised; an error of ours is returned as it is.
        doing: What was tried, in words that follow "while", as
            ``asking the endpoint at polaris``.

    Returns:
        A `LoginError` whose hint is the exact command; a transient `GatewayError`
        when the service could not be reached or was too busy (use `TransferError.of`
        on it where that fits better); None for an answer of another kind, such as a
        path that does not exist.
    """
    if isinstance(error, HansaError):
        return error
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra
    if isinstance(error, globus_sdk.NetworkError):
        cause = type(error.underlying_exception).__name__
        return GatewayError(
            f"Globus can't be reached while {doing}: {error} ({cause}).",
            hint="Hansa tries again; see https://status.globus.org.",
        )
    if isinstance(error, globus_sdk.GlobusAPIError):
        return _answered(error, doing)
    return None


def login_command(
    collections: Iterable[str] = (), session: Iterable[str] = (), *, force: bool = False
) -> str:
    """Return the command that a person runs, safe to paste into a shell.

    Args:
        collections: Ids of the collections whose data Hansa shall be let to.
        session: What the new session must have, as ``domain=anl.gov`` or ``mfa``.
        force: Log out first, as another person.
    """
    words = ["hansa", "login"]
    for one in collections:
        words += ["--collection", one]
    for one in session:
        words += ["--session", one]
    command = shlex.join(words)
    return f"hansa logout && {command}" if force else command


def collections_of(scopes: str) -> list[str]:
    """Return the collections whose ``data_access`` is among some scopes."""
    return sorted({one.lower() for one in _DATA_ACCESS.findall(scopes)})


def _answered(error: GlobusAPIError, doing: str) -> HansaError | None:
    from globus_sdk import gare  # noqa: PLC0415 - an extra

    asked = gare.to_gare(error)
    if asked is not None:
        return _asked(asked.authorization_parameters, error, doing)
    if error.http_status in _AWAY or error.http_status >= 500:
        return GatewayError(
            f"Globus answers {error.http_status} while {doing}: {_said(error)}",
            hint="Hansa tries again; see https://status.globus.org.",
        )
    if "unknown_scope" in _codes(error):
        return LoginError(
            f"Globus knows no such consent while {doing}: {_said(error)}",
            hint="Only mapped collections that are not of high assurance have one: say "
            "`data_access: false` beside the others in the federation file.",
            transient=False,
        )
    if error.http_status == 401 or _oauth_word(error) in _TOKEN_GONE:
        return refused_token(doing, _said(error))
    return None


def refused_token(doing: str, said: str) -> LoginError:
    """Return the error for a login that Globus no longer takes."""
    if client_id_of_app() is not None:
        return LoginError(
            f"Globus refuses the client {client_id_of_app()} while {doing}: {said}",
            hint=f"Put its id and a secret that holds into HANSA_GLOBUS_CLIENT_ID and "
            f"{SECRET}, and start again.",
        )
    return LoginError(
        f"Globus no longer takes the login while {doing}: {said}",
        hint=f"Run `{login_command()}` in another terminal.",
    )


def _asked(
    wanted: GlobusAuthorizationParameters, error: GlobusAPIError, doing: str
) -> LoginError:
    scopes = " ".join(wanted.required_scopes or ())
    collections = collections_of(scopes)
    session = list(_session(wanted))
    said = _clean(wanted.session_message or "") or _said(error)
    if client_id_of_app() is not None:
        return _client_app_lacks(collections, said, doing)
    lacks = "a consent" if scopes else "another session"
    of = f" for {', '.join(collections)}" if collections else ""
    return LoginError(
        f"Globus wants {lacks}{of} while {doing}: {said}",
        hint=f"Run `{login_command(collections, session)}` in another terminal.",
    )


def _client_app_lacks(collections: list[str], said: str, doing: str) -> LoginError:
    of = f" for {', '.join(collections)}" if collections else ""
    return LoginError(
        f"Globus wants more of the client {client_id_of_app()}{of} while {doing}: "
        f"{said}",
        hint="Say `data_access: true` beside that collection in the federation file."
        if collections
        else "A client has no session: ask the owner of the collection to admit it, "
        f"or unset {SECRET} and HANSA_GLOBUS_CLIENT_ID and run `hansa login`.",
    )


def _session(wanted: GlobusAuthorizationParameters) -> Iterator[str]:
    """Yield what `--session` takes; words that no id or domain has are left out."""
    for kind, values in (
        ("identity", wanted.session_required_identities),
        ("domain", wanted.session_required_single_domain),
        ("policy", wanted.session_required_policies),
    ):
        yield from (f"{kind}={one}" for one in values or () if _PLAIN.fullmatch(one))
    if wanted.session_required_mfa:
        yield "mfa"
    if wanted.prompt == "login":
        yield "fresh"


def _oauth_word(error: GlobusAPIError) -> str:
    body = error.raw_json
    return str(body.get("error", "")) if isinstance(body, dict) else ""


def _codes(error: GlobusAPIError) -> str:
    named = [_oauth_word(error), error.code, *(one.code for one in error.errors)]
    return " ".join(filter(None, named)).lower()


def _said(error: GlobusAPIError) -> str:
    """Return the service's own words; never what we sent."""
    said = _clean(error.message or _oauth_word(error) or error.http_reason)
    return f"{said or 'no words'} ({error.http_status} {_clean(error.code or '')})"


def _clean(text: str) -> str:
    """Return a stranger's words on one line, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
