"""`hansa check`: what can be known of every facility before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.options import CHANGES, JSON
from hansa.cli.output import console, plain, say, show_json, show_table

if TYPE_CHECKING:
    from hansa.coordinator.findings import FacilityCheck, Finding

SUBMIT = typer.Option(
    False, "--submit", help="Submit a job of a second that looks around on a node."
)
QUEUES = typer.Option(
    None,
    "--queue",
    metavar="FACILITY=QUEUE",
    help="Queue of that job at a facility, else that of the run; repeat it.",
)
WAIT = typer.Option("15m", "--wait", help="How long to wait for that job.")
_ABREAST = 4
"""So many facilities fit beside each other on a screen."""


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(check)


def check(
    file: Path = typer.Argument(help="federation.yaml"),
    overrides: list[str] | None = CHANGES,
    submit: bool = SUBMIT,
    wait: str = WAIT,
    queue: list[str] | None = QUEUES,
    json_: bool = JSON,
) -> None:
    """Check a federation file and ask every facility whether it is ready."""
    import asyncio

    from hansa.coordinator.preflight import Trials, check_all
    from hansa.coordinator.setup import make_coordinator
    from hansa.spec import load_federation

    longest = patience(wait)
    spec = load_federation(file, overrides or ())
    make_coordinator(spec)
    queues = queues_of(queue or (), spec.facilities)
    trials = Trials(patience=longest, queues=queues) if submit else None
    with progress(loud=submit) as watch:
        checks = asyncio.run(check_all(spec, spec.name, trials=trials, watch=watch))
    raise typer.Exit(show(str(file), checks, as_json=json_))


def patience(text: str) -> float:
    """Return seconds from an option.

    Raises:
        UsageError: It is no duration.
    """
    from hansa.core.errors import UsageError
    from hansa.core.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--wait: {error}.") from None


def queues_of(given: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return the queues of ``FACILITY=QUEUE`` texts.

    Raises:
        UsageError: One is written otherwise, or names no facility.
    """
    from hansa.core.errors import SpecError, UsageError
    from hansa.core.ids import check_word

    names, queues = list(known), {}
    for text in given:
        name, _, queue = text.partition("=")
        if name not in names:
            raise UsageError(
                f"--queue: {text!r} names no facility.",
                hint=f"Say FACILITY=QUEUE; there are {', '.join(names)}.",
            )
        try:
            queues[name] = check_word(queue)
        except SpecError as error:
            raise UsageError(f"--queue: {error.message}", hint=error.hint) from None
    return queues


@contextmanager
def progress(*, loud: bool) -> Iterator[Callable[[str, str], None]]:
    """Show what goes on: one moving line on a terminal, else plain lines if `loud`."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda name, words: say(f"{name}: {words}") if loud else None
        return
    standing: dict[str, str] = {}
    with screen.status("") as line:

        def watch(name: str, words: str) -> None:
            standing[name] = words
            busy = [f"{n}: {w}" for n, w in standing.items() if w != "done"]
            line.update("; ".join(busy))

        yield watch


def show(title: str, checks: Sequence[FacilityCheck], *, as_json: bool) -> int:
    """Print what was found and return the exit code: 3 if anything is wrong."""
    code = 3 if any(one.problems for one in checks) else 0
    if as_json:
        show_json({one.facility: one.to_json() for one in checks}, code)
        return code
    for first in range(0, len(checks), _ABREAST):
        _show_matrix(title, checks[first : first + _ABREAST])
    for line in _remedies(checks):
        print(plain(line))
    return code


def _show_matrix(title: str, checks: Sequence[FacilityCheck]) -> None:
    from hansa.coordinator.findings import CHECKS
    from hansa.report.tables import Table

    rows = []
    for name in CHECKS:
        cells = [_cell(one.of(name)) for one in checks]
        if any(cells):
            rows.append((name, *cells))
    columns = ("check", *(one.facility for one in checks))
    show_table(
        Table(title=title, columns=columns, rows=tuple(rows), left=frozenset(columns))
    )


def _cell(found: Sequence[Finding]) -> str:
    """Return the worst of some findings in a few words; details stand below."""
    if not found:
        return ""
    worst = found[0]
    if worst.state == "problem":
        return "PROBLEM"
    details = [one.detail for one in found if one.detail and one.state == worst.state]
    words = {"ok": "ok", "warning": "warning", "unknown": "?"}[worst.state]
    return f"{words}: {details[-1]}" if details else words


def _remedies(checks: Sequence[FacilityCheck]) -> Iterator[str]:
    for one in checks:
        for found in one.findings:
            if found.state in ("problem", "warning"):
                yield f"{one.facility}: {found.check}: {found.state}: {found.detail}"
                if found.hint:
                    yield f"  help: {found.hint}"
    bad = [one.facility for one in checks if one.problems]
    yield f"not ready: {', '.join(bad)}" if bad else "all ready"
