"""Where a Globus client gets the token of its next request from; never from a person.

Imported only where the extra `globus` is installed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import globus_sdk
from globus_sdk.authorizers import ClientCredentialsAuthorizer, GlobusAuthorizer
from globus_sdk.token_storage import TokenStorageData

from hansa.core.errors import LoginError
from hansa.login import folder
from hansa.login.credentials import Client, client
from hansa.login.tokens import Tokens
from hansa.login.words import explained, login_command

MARGIN_S: Final = 60.0
"""A token that ends so soon counts as ended."""

_one_at_a_time = threading.Lock()
_of_apps: dict[tuple[str, ...], GlobusAuthorizer] = {}


def authorizer(
    server: str, scope: str, collections: Iterable[str] = ()
) -> GlobusAuthorizer:
    """Return what authorizes requests to one service.

    Args:
        server: Name of the service as a resource server.
        scope: What is needed of it, consents included.
        collections: The collections that the scope names, for the hint of an error.

    Raises:
        LoginError: Nobody is logged in, or the client app is refused.
        GatewayError: Globus Auth can't be reached.
    """
    with _readable():
        known = client()
        if known.secret is not None:
            return _of_app(known, known.secret, scope)
        stored = StoredToken(known, server, login_command(sorted(collections)))
        stored.look()
    return stored


@contextmanager
def _readable() -> Iterator[None]:
    """Turn a folder that can't be used just now, as on a full disk, into words."""
    try:
        yield
    except OSError as error:
        raise LoginError(
            f"The Globus login in {folder.path()} can't be used: {error.strerror}.",
            hint="Is there space, and is its file system there? Then `hansa whoami` "
            "shows the login.",
        ) from error


def _of_app(known: Client, secret: str, scope: str) -> GlobusAuthorizer:
    """Return the one authorizer of a client app for a scope; tokens stay in memory.

    A token's consents are those of the moment when it was given, so that each scope has
    a token of its own.
    """
    app = globus_sdk.ConfidentialAppAuthClient(
        known.id, secret, environment=folder.environment()
    )
    key = (app.base_url, known.id, secret, scope)
    with _one_at_a_time:
        if key not in _of_apps:
            _of_apps[key] = _credentials(app, scope)
        return _of_apps[key]


def _credentials(
    app: globus_sdk.ConfidentialAppAuthClient, scope: str
) -> GlobusAuthorizer:
    try:
        return ClientCredentialsAuthorizer(app, scope)
    except globus_sdk.GlobusError as error:
        found = explained(error, "getting a token for the client app")
        if found is None:
            raise
        raise found from error


class StoredToken(GlobusAuthorizer):
    """Takes the token from the file at each request, and refreshes it when it ends.

    So a login in another terminal is seen by clients that were made before it.

    Args:
        known: The person's client.
        server: Name of the service as a resource server.
        command: What logs in, for hints.
    """

    def __init__(self, known: Client, server: str, command: str) -> None:
        self._client = known
        self._server = server
        self._command = command
        self._tokens = Tokens(known.id)
        self._sent = ""
        self._refused = ""

    def look(self) -> TokenStorageData:
        """Return what is stored.

        Raises:
            LoginError: There is no token for this service.
        """
        found = self._tokens.read().get(self._server)
        if found is None:
            raise LoginError(
                f"You are not logged in to {self._server}.",
                hint=f"Run `{self._command}` in another terminal.",
            )
        return found

    def get_authorization_header(self) -> str:
        """Return the header with a token that holds for a while."""
        with _readable():
            found = self.look()
            if not self._holds(found):
                with _one_at_a_time:
                    found = self.look()  # another thread, or a person, was first
                    if not self._holds(found):
                        found = self._refreshed(found)
        self._sent = found.access_token
        return f"Bearer {found.access_token}"

    def handle_missing_authorization(self) -> bool:
        """Note that the service refused the token, and have the request repeated."""
        self._refused = self._sent
        return True

    def _holds(self, found: TokenStorageData) -> bool:
        ends = found.expires_at_seconds - MARGIN_S
        return found.access_token != self._refused and time.time() < ends

    def _refreshed(self, old: TokenStorageData) -> TokenStorageData:
        if old.refresh_token is None:
            raise LoginError(
                f"The login to {self._server} has ended; it can't be refreshed.",
                hint=f"Run `{self._command}` in another terminal.",
            )
        try:
            new = self._ask(old, old.refresh_token)
        except globus_sdk.AuthAPIError as error:
            found = explained(error, f"refreshing the login to {self._server}")
            if isinstance(found, LoginError):
                hint = f"Run `{self._command}` in another terminal."
                raise LoginError(found.message, hint=hint) from error
            raise
        return self._tokens.renew(old, new)

    def _ask(self, old: TokenStorageData, refresh_token: str) -> TokenStorageData:
        with globus_sdk.NativeAppAuthClient(
            self._client.id, environment=folder.environment()
        ) as auth:
            answer = auth.oauth2_refresh_token(refresh_token)
        given = answer.by_resource_server[self._server]
        return TokenStorageData(
            resource_server=self._server,
            identity_id=old.identity_id,
            scope=given["scope"],
            access_token=given["access_token"],
            refresh_token=given.get("refresh_token") or refresh_token,
            expires_at_seconds=given["expires_at_seconds"],
            token_type=given.get("token_type"),
        )
