"""`hansa site …`: the facility's side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

SITE = typer.Option(Path("site.yaml"), "--site", help="The facility's site.yaml.")


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    group = typer.Typer(no_args_is_help=True, help="Run at a facility.")
    group.command()(rpc)
    group.command()(check)
    app.add_typer(group, name="site")


def rpc(site: Path = SITE) -> None:
    """Answer one JSON request from stdin on stdout: the only way into a facility."""
    from hansa.core.errors import HansaError, UsageError
    from hansa.site import rpc as messages
    from hansa.site.agent import Agent
    from hansa.spec import load_site

    try:
        request = json.loads(sys.stdin.read())
        if not isinstance(request, dict):
            raise UsageError("The request is no JSON object.")
        reply = Agent(load_site(site)).handle(request)
    except json.JSONDecodeError as error:
        reply = messages.refusal(UsageError(f"The request is no JSON: {error}."))
    except HansaError as error:
        reply = messages.refusal(error)
    print(json.dumps(reply))


def check(site: Path = SITE) -> None:
    """Check a site.yaml and the facility's own health."""
    from hansa.cli.output import say
    from hansa.site import rpc as messages
    from hansa.site.agent import Agent
    from hansa.spec import load_site

    data = messages.unwrap(Agent(load_site(site)).handle(messages.probe()))
    print(json.dumps(data, indent=2))
    for problem in data.get("problems", ()):
        say(f"problem: {problem['what']} {problem.get('hint') or ''}".rstrip())
    raise typer.Exit(3 if data.get("problems") else 0)
