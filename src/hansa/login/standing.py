"""Who is logged in, for how long, and with which consents."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from hansa.core.errors import HansaError, LoginError, PluginError
from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING, Remark
from hansa.core.units import short_duration
from hansa.login import clients
from hansa.login.credentials import client
from hansa.login.extra import extra
from hansa.login.words import collections_of, explained, login_command

if TYPE_CHECKING:
    import globus_sdk

CHECK: Final = "login"
SOON_S: Final = 24 * 3600.0
"""What ends so soon is worth a warning."""

_ASKING = "asking who is logged in"
_SERVICES = {
    "auth.globus.org": "Globus Auth",
    "funcx_service": "Globus Compute",
    "transfer.api.globus.org": "Globus Transfer",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """A token, but for the token itself.

    Attributes:
        service: The service that takes it.
        ends: Unix time at which it ends.
        refreshed: Whether Hansa gets the next one by itself.
    """

    service: str
    ends: float
    refreshed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Who is logged in.

    Attributes:
        client: Id of the client of Globus Auth.
        is_app: Whether the client acts for itself, without a person.
        identity: Id of the identity.
        username: As ``me@anl.gov``.
        name: The person's name.
        last_login: Unix time of the session's last login; None if it is not told.
        accesses: What is stored; empty for an app, whose tokens stay in memory.
        consents: Collections whose data Hansa may get at; an app has those that its
            federation names.
    """

    client: str
    is_app: bool
    identity: str
    username: str
    name: str
    last_login: float | None
    accesses: tuple[Access, ...] = ()
    consents: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return plain JSON data; there is no secret in it."""
        return asdict(self)


def standing() -> Standing:
    """Ask Globus Auth who is logged in.

    Raises:
        LoginError: Nobody is, or the login no longer holds.
        GatewayError: Globus Auth can't be reached.
        PluginError: The extra `globus` is not installed.
    """
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra
    known = client()
    is_app = known.secret is not None
    try:
        with clients.auth_client() as auth:
            info = auth.userinfo()
            consents = () if is_app else _consents(auth, str(info["sub"]))
    except globus_sdk.GlobusError as error:
        raise explained(error, _ASKING) or _unclear(error) from error
    return Standing(
        client=known.id,
        is_app=is_app,
        identity=str(info["sub"]),
        username=str(info.get("preferred_username") or info.get("username") or ""),
        name=str(info.get("name") or ""),
        last_login=_last_login(info.get("identity_set")),
        accesses=() if is_app else _accesses(known.id),
        consents=consents,
    )


def _unclear(error: globus_sdk.GlobusError) -> LoginError:
    status = getattr(error, "http_status", type(error).__name__)
    return LoginError(
        f"Globus Auth answers {status} while {_ASKING}.",
        hint=f"Run `{login_command(force=True)}`.",
    )


def remarks(
    *, compute: bool = False, collections: Mapping[str, bool] | None = None
) -> list[Remark]:
    """Say whether the login is enough for a gateway or a mover.

    Args:
        compute: Whether Globus Compute is used.
        collections: Ids of the collections in use, and whether each needs a
            ``data_access`` consent; None: Globus Transfer is not used.
    """
    consents = [one.lower() for one, needed in (collections or {}).items() if needed]
    try:
        found = standing()
        if compute:
            clients.compute_client()
        if collections is not None:
            clients.transfer_client(consents)
    except (LoginError, PluginError) as error:
        return [Remark(CHECK, PROBLEM, error.message, error.hint or "")]
    except HansaError as error:
        return [Remark(CHECK, UNKNOWN, error.message, error.hint or "")]
    said = [_who(found), *_ending(found), *_lacking(found, consents)]
    if not found.is_app:
        said += _sessions(found, collections or {})
    return said


def _who(found: Standing) -> Remark:
    who = found.username or found.identity
    return Remark(CHECK, OK, f"{who} (client app)" if found.is_app else who)


def _ending(found: Standing) -> Iterator[Remark]:
    for one in found.accesses:
        if not one.refreshed:
            yield Remark(
                CHECK,
                WARNING,
                f"The login to {one.service} ends {moment(one.ends)} and can't be "
                "refreshed.",
                f"Run `{login_command()}` again before that; a run goes on meanwhile.",
            )


def _lacking(found: Standing, needed: Iterable[str]) -> Iterator[Remark]:
    if found.is_app:
        return
    lacking = sorted(set(needed) - set(found.consents))
    if lacking:
        yield Remark(
            CHECK,
            PROBLEM,
            f"Hansa has no consent to get at the data of {', '.join(lacking)}.",
            f"Run `{login_command(lacking)}`.",
        )


def _sessions(found: Standing, collections: Mapping[str, bool]) -> Iterator[Remark]:
    """Look at collections that want a login not longer ago than some minutes."""
    if not collections:
        return
    with clients.transfer_client() as transfer:
        for one in sorted(collections):
            yield from _session_of(transfer, one, found.last_login)


def _session_of(
    transfer: globus_sdk.TransferClient, collection: str, last: float | None
) -> Iterator[Remark]:
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra
    try:
        document = transfer.get_endpoint(collection)
    except globus_sdk.GlobusError as error:
        told = explained(error, f"looking at the collection {collection}")
        what = told.message if told else f"The collection {collection} can't be seen."
        yield Remark(CHECK, UNKNOWN, what, (told.hint or "") if told else "")
        return
    minutes = document.get("authentication_timeout_mins")
    if document.get("high_assurance") and isinstance(minutes, int):
        name = str(document.get("display_name") or collection)
        yield _session(name, last, minutes * 60.0)


def _session(name: str, last: float | None, lasts: float) -> Remark:
    every = f"{name} wants a login every {short_duration(lasts)}"
    command = f"Run `{login_command(session=['fresh'])}`"
    if last is None:
        return Remark(CHECK, UNKNOWN, f"{every}.", f"{command} when it is due.")
    left = last + lasts - time.time()
    if left <= 0:
        return Remark(CHECK, PROBLEM, f"{every}; the last is too old.", f"{command}.")
    state = WARNING if left < SOON_S else OK
    return Remark(
        CHECK,
        state,
        f"{every}; this one holds until {moment(last + lasts)}.",
        f"{command} before that; a run waits for you meanwhile."
        if left < SOON_S
        else "",
    )


def moment(when: float) -> str:
    """Return a Unix time for people, in universal time."""
    return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC"


def _accesses(client_id: str) -> tuple[Access, ...]:
    from hansa.login.tokens import Tokens  # noqa: PLC0415 - an extra

    return tuple(
        Access(
            service=_SERVICES.get(server, server),
            ends=float(one.expires_at_seconds),
            refreshed=one.refresh_token is not None,
        )
        for server, one in sorted(Tokens(client_id).read().items())
    )


def _consents(auth: globus_sdk.AuthClient, identity: str) -> tuple[str, ...]:
    given = auth.get_consents(identity)["consents"]
    names = (str(one["scope_name"]) for one in given if one["status"] == "approved")
    return tuple(collections_of(" ".join(names)))


def _last_login(identity_set: Any) -> float | None:
    times = [
        float(one["last_authentication"])
        for one in identity_set or ()
        if one.get("last_authentication") is not None
    ]
    return max(times, default=None)
