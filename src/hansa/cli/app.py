"""The `hansa` command: puts the verbs together and turns errors into exit codes."""

from __future__ import annotations

import logging
import sys

import typer

import hansa
from hansa.cli import (
    bench,
    check,
    compare,
    evaluate,
    function,
    inspect,
    login,
    plan,
    run,
    simulate,
    site,
    start,
)
from hansa.cli.output import plain, show_error
from hansa.core.errors import HansaError
from hansa.login.credentials import hide_secret

app = typer.Typer(
    name="hansa",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train one model across many supercomputers; every facility stays sovereign.",
)
for group in (
    start,
    check,
    plan,
    run,
    inspect,
    evaluate,
    simulate,
    compare,
    bench,
    site,
    login,
    function,
):
    group.register(app)


def _version(value: bool) -> None:
    if value:
        print(f"hansa {hansa.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
    verbose: int = typer.Option(
        0, "--verbose", "-v", count=True, help="Say more; twice for every detail."
    ),
) -> None:
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _Plain(logging.Formatter):
    """Facilities' words reach the log; a terminal must not obey them."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def main() -> None:
    """Run the command line; the entry point of `hansa`."""
    hide_secret()
    try:
        app(prog_name="hansa")
    except HansaError as error:
        sys.exit(show_error(error, as_json="--json" in sys.argv))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        told = HansaError(f"The system says: {error.strerror or error}{where}.")
        sys.exit(show_error(told, as_json="--json" in sys.argv))
    except KeyboardInterrupt:
        sys.exit(130)
