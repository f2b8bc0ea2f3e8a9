"""Logging a person in and out at Globus Auth.

Imported only where the extra `globus` is installed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import globus_sdk
from globus_sdk import MISSING
from globus_sdk.scopes import AuthScopes, ComputeScopes, TransferScopes
from globus_sdk.token_storage import TokenStorageData

from hansa.core.errors import LoginError, UsageError
from hansa.login import credentials, folder
from hansa.login.credentials import Client
from hansa.login.scopes import Wanted, uuid
from hansa.login.tokens import Tokens
from hansa.login.words import explained, login_command

_KINDS = ("identity", "domain", "policy")

Ask = Callable[[str], str]
"""Shows a person the address to open, and returns the code that Globus gives there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What the new session must have, beside a login.

    Attributes:
        identities: Ids or user names that must have logged in.
        domains: One of these domains must have logged in, as ``anl.gov``.
        policies: Ids of policies that must be met.
        mfa: Log in with a second factor.
        fresh: Log in anew, even if the browser still knows the person.
    """

    identities: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    mfa: bool = False
    fresh: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Session:
        """Read what `--session` was given.

        Raises:
            UsageError: One of the texts means nothing.
        """
        found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        flags = set()
        for text in texts:
            kind, equals, value = text.partition("=")
            if kind in found and value:
                found[kind].append(value)
            elif kind in ("mfa", "fresh") and not equals:
                flags.add(kind)
            else:
                raise UsageError(
                    f"--session: {text!r} means nothing.",
                    hint="Say identity=ID, domain=NAME, policy=ID, mfa or fresh.",
                )
        return cls(
            identities=tuple(found["identity"]),
            domains=tuple(found["domain"]),
            policies=tuple(found["policy"]),
            mfa="mfa" in flags,
            fresh="fresh" in flags,
        )


def log_in(client_id: str, wanted: Wanted, session: Session, ask: Ask) -> None:
    """Log a person in; tokens and client id are kept in the user's folder.

    Args:
        client_id: The client to be.
        wanted: What to ask for.
        session: What else the session must have.
        ask: How to reach the person.

    Raises:
        LoginError: Globus does not take the code, gives less than was asked for, or
            somebody else is logged in.
        GatewayError: Globus Auth can't be reached.
    """
    folder.make()
    with _native(client_id) as auth:
        auth.oauth2_start_flow(
            wanted.scopes(),
            refresh_tokens=True,
            prefill_named_grant=f"Hansa on {socket.gethostname()}",
        )
        tokens = _exchanged(auth, ask(_address(auth, session)))
        try:
            _check(client_id, wanted, tokens)
        except LoginError:
            _revoke(auth, tokens.values())
            raise
    Tokens(client_id).write(tokens)
    folder.remember_client_id(client_id)


def log_out() -> bool:
    """Revoke the person's tokens and remove their file.

    Returns:
        Whether all of them are revoked. The file is gone in any case.

    Raises:
        LoginError: The folder is open to others.
    """
    client_id = folder.read_client_id()
    if client_id is None:
        return True
    tokens = Tokens(client_id)
    try:
        stored, readable = tokens.read(), True
    except LoginError:  # damaged; `check_private` has passed just before
        stored, readable = {}, False
    with _native(client_id) as auth:
        revoked = _revoke(auth, stored.values())
    tokens.forget()
    return revoked and readable


def choose_client(given: str | None) -> Client:
    """Return the client to log in with.

    Args:
        given: What `--client-id` says; None: the remembered one.

    Raises:
        UsageError: It is no UUID, or the environment names a client app.
        LoginError: There is none yet, or somebody is logged in with another one.
    """
    if given is None:
        return credentials.client()
    given = uuid(given)
    app = credentials.client_id_of_app()
    if app is not None:
        raise UsageError(
            f"{credentials.ID} names the client app {app}, and --client-id a person's.",
            hint=f"Unset {credentials.ID} and {credentials.SECRET}, or leave out "
            "--client-id.",
        )
    before = folder.read_client_id()
    if before not in (None, given) and Tokens(str(before)).read():
        raise LoginError(
            f"You are logged in with another client ({before}).",
            hint=f"Run `hansa logout && hansa login --client-id {given}`.",
        )
    return Client(given)


def _native(client_id: str) -> globus_sdk.NativeAppAuthClient:
    return globus_sdk.NativeAppAuthClient(client_id, environment=folder.environment())


def _address(auth: globus_sdk.NativeAppAuthClient, session: Session) -> str:
    return auth.oauth2_get_authorize_url(
        session_required_identities=list(session.identities) or MISSING,
        session_required_single_domain=list(session.domains) or MISSING,
        session_required_policies=list(session.policies) or MISSING,
        session_required_mfa=session.mfa or MISSING,
        prompt="login" if session.fresh else MISSING,
    )


def _exchanged(
    auth: globus_sdk.NativeAppAuthClient, code: str
) -> dict[str, TokenStorageData]:
    """Return what Globus gives for a code, by resource server."""
    try:
        answer = auth.oauth2_exchange_code_for_tokens(code)
        identity = str(answer.decode_id_token()["sub"])
    except globus_sdk.GlobusError as error:
        raise _not_taken(error) from error
    return {
        server: _stored(given, identity)
        for server, given in answer.by_resource_server.items()
    }


def _not_taken(error: globus_sdk.GlobusError) -> Exception:
    found = explained(error, "logging in")
    if not isinstance(error, globus_sdk.AuthAPIError) or error.http_status >= 500:
        return found or error
    said = found.message if found else f"Globus answers {error.http_status}."
    return LoginError(
        f"The code was not taken. {said}",
        hint="A code holds for ten minutes and for one login: run the command again, "
        "and paste the whole code.",
    )


def _stored(given: Mapping[str, Any], identity: str) -> TokenStorageData:
    return TokenStorageData(
        resource_server=given["resource_server"],
        identity_id=identity,
        scope=given["scope"],
        access_token=given["access_token"],
        refresh_token=given.get("refresh_token"),
        expires_at_seconds=given["expires_at_seconds"],
        token_type=given.get("token_type"),
    )


def _check(
    client_id: str, wanted: Wanted, tokens: Mapping[str, TokenStorageData]
) -> None:
    identity = next(iter(tokens.values())).identity_id
    needed = {
        AuthScopes.resource_server: True,
        TransferScopes.resource_server: wanted.transfer,
        ComputeScopes.resource_server: wanted.compute,
    }
    lacks = [name for name, asked in needed.items() if asked and name not in tokens]
    if lacks:
        raise LoginError(
            f"Globus gave no token for {', '.join(lacks)}.",
            hint="Run the command again and allow all that it asks for.",
        )
    before = {one.identity_id for one in Tokens(client_id).read().values()}
    if before and before != {identity}:
        raise LoginError(
            f"You logged in as {identity}, but somebody else is logged in: "
            f"{', '.join(sorted(map(str, before)))}.",
            hint=f"Run `{login_command(force=True)}`, or choose the first identity.",
        )


def _revoke(
    auth: globus_sdk.NativeAppAuthClient, tokens: Iterable[TokenStorageData]
) -> bool:
    every = True
    for one in tokens:
        for word in filter(None, (one.access_token, one.refresh_token)):
            try:
                auth.oauth2_revoke_token(word)
            except globus_sdk.GlobusError:  # the caller tells the person
                every = False
    return every
