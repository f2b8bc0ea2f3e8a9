"""Which client of Globus Auth Hansa is: an app with a secret, or a person's own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from hansa.core.errors import LoginError
from hansa.login import folder

ID: Final = "HANSA_GLOBUS_CLIENT_ID"
SECRET: Final = "HANSA_GLOBUS_CLIENT_SECRET"  # noqa: S105 - the name of a variable
REGISTER: Final = (
    "Register one in two minutes: open https://app.globus.org/settings/developers, "
    "choose `Register a thick client or script that will be installed and run by users "
    "on their devices`, give it a name, copy its Client UUID, and run "
    "`hansa login --client-id UUID`."
)
"""How a person gets a client id."""

_taken: dict[str, str] = {}
"""Secrets by client id, taken out of the environment."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client of Globus Auth.

    Attributes:
        id: Its UUID.
        secret: Only a client app has one: it acts for itself, without a person.
    """

    id: str
    secret: str | None = field(default=None, repr=False)


def hide_secret() -> None:
    """Take the secret out of the environment, so that no child process gets it.

    It stays in this process's memory. Call it before anything is started.
    """
    secret = os.environ.pop(SECRET, "")
    if secret:
        _taken[os.environ.get(ID, "")] = secret


def client_id_of_app() -> str | None:
    """Return the id of the client app that the environment names, if it names one."""
    hide_secret()
    named = os.environ.get(ID, "")
    return named or None


def client() -> Client:
    """Return the client to be: the environment's app, else the remembered one.

    Raises:
        LoginError: There is none, or the environment names half of one.
    """
    named = client_id_of_app()
    if named is not None:
        if named not in _taken:
            raise LoginError(
                f"{ID} is set, but {SECRET} is not.",
                hint=f"Set both, or unset {ID} to log in as a person.",
                transient=False,
            )
        return Client(named, _taken[named])
    remembered = folder.read_client_id()
    if remembered is None:
        raise LoginError("Hansa has no Globus client id yet.", hint=REGISTER)
    return Client(remembered)
