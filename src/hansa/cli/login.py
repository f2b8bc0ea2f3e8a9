"""`hansa login`, `logout`, `whoami`: who one is at Globus."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli.options import JSON
from hansa.cli.output import say, show_json
from hansa.core.errors import LoginError, UsageError

if TYPE_CHECKING:
    from hansa.login.scopes import Wanted
    from hansa.login.standing import Standing
    from hansa.spec.federation import FederationSpec

FILE = typer.Argument(
    None,
    help="federation.yaml: ask for what its facilities need; without it for Globus "
    "Transfer and Globus Compute.",
)
CLIENT_ID = typer.Option(
    None,
    "--client-id",
    metavar="UUID",
    help="Your own Globus client; needed once, then remembered. Register a thick "
    "client at https://app.globus.org/settings/developers: two minutes.",
)
COLLECTIONS = typer.Option(
    None,
    "--collection",
    metavar="UUID",
    help="A mapped collection whose data Hansa shall get at; repeat it.",
)
SESSION = typer.Option(
    None,
    "--session",
    metavar="WANT",
    help="What the session must have: identity=ID, domain=NAME, policy=ID, mfa, fresh; "
    "repeat it.",
)


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(login)
    app.command()(logout)
    app.command()(whoami)


def login(
    file: Path | None = FILE,
    client_id: str | None = CLIENT_ID,
    collection: list[str] | None = COLLECTIONS,
    session: list[str] | None = SESSION,
) -> None:
    """Log in to Globus, for all that a federation needs in one go.

    You open an address in any browser and paste the code that it shows. With
    HANSA_GLOBUS_CLIENT_ID and HANSA_GLOBUS_CLIENT_SECRET set, Hansa is that client
    app, and this only tries whether Globus takes it.
    """
    from hansa.login.extra import extra

    with extra():
        from hansa.login import flow
    wanted = _wanted(file, collection or ())
    needs = flow.Session.parse(session or ())
    known = flow.choose_client(client_id)
    if known.secret is None:
        _need_terminal()
        flow.log_in(known.id, wanted, needs, _ask)
    _show(_tried(wanted))


def logout() -> None:
    """Log out: revoke Hansa's tokens at Globus, and remove them here."""
    from hansa.login.credentials import SECRET, client_id_of_app
    from hansa.login.extra import extra

    with extra():
        from hansa.login import flow
    if not flow.log_out():
        raise LoginError(
            "The tokens are removed here, but Globus could not be told of all of them.",
            hint="Revoke them at https://app.globus.org/settings/consents.",
        )
    say("logged out")
    if client_id_of_app() is not None:
        say(f"The client app is still in your environment; unset {SECRET} to be rid.")


def whoami(json_: bool = JSON) -> None:
    """Show who is logged in to Globus, until when, and with which consents."""
    from hansa.login.standing import standing

    found = standing()
    if json_:
        show_json(found.to_json())
    else:
        _show(found)


def _wanted(file: Path | None, collections: Iterable[str]) -> Wanted:
    from hansa.login.scopes import Wanted, uuid
    from hansa.spec import load_federation

    more = [uuid(one) for one in collections]
    if file is None:
        return Wanted(collections=tuple(more))
    spec = load_federation(file)
    wanted = needs_of(spec)
    if not (wanted.transfer or wanted.compute or more):
        raise UsageError(
            f"No facility of {file} is reached through Globus.",
            hint="It needs no login.",
        )
    return Wanted(
        transfer=wanted.transfer or bool(more),
        compute=wanted.compute,
        collections=tuple(dict.fromkeys((*wanted.collections, *more))),
    )


def needs_of(spec: FederationSpec) -> Wanted:
    """Return what a login must allow for a federation to run."""
    from hansa.login.scopes import Wanted

    gateways = [one.gateway.type for one in spec.facilities.values()]
    movers = [one.mover for one in spec.facilities.values()]
    collections = (
        one
        for mover in movers
        if mover.type == "globus"
        for one in _consents(mover.options)
    )
    return Wanted(
        transfer=any(mover.type == "globus" for mover in movers),
        compute="globus_compute" in gateways,
        collections=tuple(dict.fromkeys(collections)),
    )


def _consents(options: Mapping[str, Any]) -> Iterator[str]:
    for side in (options, options.get("here") or {}):
        if side.get("data_access") and side.get("collection"):
            yield str(side["collection"]).lower()


def _need_terminal() -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            "A login needs a person at a terminal, and there is none.",
            hint="Run it in a terminal; or set HANSA_GLOBUS_CLIENT_ID and "
            "HANSA_GLOBUS_CLIENT_SECRET to be a client app.",
        )


def _ask(address: str) -> str:
    say(f"Open this address in a browser, log in, and allow:\n\n{address}\n")
    say("Then paste the code that it shows, and press Enter.")
    try:
        code = input().strip()
    except EOFError:
        code = ""
    if not code:
        raise UsageError("No code was given.", hint="Nobody was logged in.")
    return code


def _tried(wanted: Wanted) -> Standing:
    """Return who is logged in, once each service's client could be made."""
    from hansa.login import clients
    from hansa.login.standing import standing

    if wanted.transfer:
        clients.transfer_client(wanted.collections)
    if wanted.compute:
        clients.compute_client()
    return standing()


def _show(found: Standing) -> None:
    from hansa.login.standing import moment

    kind = "client app" if found.is_app else "client"
    print(f"{found.username or found.identity}  {found.name}".rstrip())
    print(f"  identity  {found.identity}")
    print(f"  {kind}  {found.client}")
    if found.last_login is not None:
        print(f"  last login  {moment(found.last_login)}")
    for one in found.accesses:
        more = ", then refreshed" if one.refreshed else ", not refreshed"
        print(f"  {one.service}  until {moment(one.ends)}{more}")
    for one_id in found.consents:
        print(f"  consent  {one_id}")
