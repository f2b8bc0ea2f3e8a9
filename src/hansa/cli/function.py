"""`hansa function …`: the one function that facilities allow at Globus Compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import typer

from hansa.cli.options import JSON
from hansa.cli.output import plain, say, show_json

if TYPE_CHECKING:
    from hansa.gateway.globus_rest import GlobusRest

ID = typer.Argument(help="Id that `hansa function register` printed.")
_ABOUT = "Hansa: hands one JSON request to the facility's own `hansa site rpc`."


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    group = typer.Typer(
        no_args_is_help=True,
        help="The one function that facilities allow at Globus Compute.",
    )
    group.command("register")(register_function)
    group.command()(show)
    group.command()(check)
    app.add_typer(group, name="function")


def register_function(
    high_assurance: UUID | None = typer.Option(
        None,
        "--high-assurance",
        metavar="ENDPOINT",
        help="Register it for this one high-assurance endpoint; such an endpoint runs "
        "no public function.",
    ),
    json_: bool = JSON,
) -> None:
    """Register the function, once for all facilities, and print its id."""
    from hansa.gateway import globus_check as ours

    endpoint = str(high_assurance) if high_assurance else None
    with _service() as service:
        made = service.register(ours.NAME, ours.source(), _ABOUT, endpoint)
    if json_:
        show_json({"function": made})
        return
    print(made)
    say(f"Put it into federation.yaml:  gateway: {{..., function: {made}}}")
    say(f"Every facility allows it:     hansa site globus-endpoint --function {made} …")


def show(
    function: UUID | None = typer.Argument(
        None, help="Id of a registered function; without it this Hansa's own text."
    ),
    json_: bool = JSON,
) -> None:
    """Print the text of the function, for whoever is to allow it."""
    from hansa.gateway import globus_check as ours

    text, same = ours.source(), True
    if function is not None:
        with _service() as service:
            about = service.function(str(function))
        text, same = ours.text_of(about), ours.is_ours(about)
    if json_:
        named = str(function) if function else None
        show_json({"function": named, "text": text, "ours": same})
        return
    print(text if same else plain(text), end="")
    if not same:
        say("This is not the text of this Hansa's function.")


def check(function: UUID = ID, json_: bool = JSON) -> None:
    """Compare a registered function with this Hansa's own, letter for letter."""
    from hansa.gateway import globus_check as ours

    with _service() as service:
        about = service.function(str(function))
    same = ours.is_ours(about)
    code = 0 if same else 1
    if json_:
        show_json({"function": str(function), "ours": same}, code)
    elif same:
        print(f"{function} holds exactly this Hansa's function.")
    else:
        print(f"{function} holds another text: of another Hansa, or of somebody else.")
        say(f"`hansa function show {function}` prints it.")
    raise typer.Exit(code)


@contextmanager
def _service() -> Iterator[GlobusRest]:
    """Give a connection to Globus Compute."""
    from hansa.core.errors import GatewayError
    from hansa.gateway.globus_rest import Busy, GlobusRest

    service = GlobusRest()
    try:
        yield service
    except Busy as busy:
        raise GatewayError(
            "Globus Compute takes no more requests just now.",
            hint=f"Try again in {busy.wait:.0f} s.",
        ) from busy
    finally:
        service.close()
