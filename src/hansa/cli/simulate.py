"""`hansa simulate`: a federation in virtual time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.imitated import Imitated, beside
from hansa.cli.options import CHANGES, FOLDER, JSON
from hansa.cli.output import console, progress_bar, say, show_json, show_table
from hansa.cli.run import EXIT_CODES, free_id
from hansa.core.errors import UsageError

if TYPE_CHECKING:
    from hansa.coordinator.folder import RunFolder
    from hansa.simulator.compare.account import Account
    from hansa.simulator.outcome import Outcome
    from hansa.spec.federation import FederationSpec

Load = Callable[[Sequence[str]], "FederationSpec"]
"""Returns a federation with overrides: from a file, or from what else describes it."""


def register(app: typer.Typer) -> None:
    """Add this file's verb."""
    app.command()(simulate)


def simulate(
    file: Path | None = typer.Argument(None, help="federation.yaml"),
    overrides: list[str] | None = CHANGES,
    seed: int | None = typer.Option(None, min=0, help="Instead of the file's seed."),
    seeds: int = typer.Option(1, min=1, help="Runs, with this seed and the next ones."),
    scenario: str | None = typer.Option(None, help="One of simulation.scenarios."),
    from_: str | None = typer.Option(
        None, "--from", help="Instead of a file: a run, whose facilities are imitated."
    ),
    check: bool = typer.Option(
        False, "--check", help="With --from: compare the run with its own simulation."
    ),
    write: Path | None = typer.Option(
        None, help="With --from: only write the federation that imitates it, here."
    ),
    target: float | None = typer.Option(
        None, help="Loss whose time is measured; stop.target's."
    ),
    id_: str | None = typer.Option(None, "--id", help="Id of the run."),
    runs: Path = FOLDER,
    keep: bool = typer.Option(
        True, "--folder/--no-folder", help="Leave plan and journal of the first run."
    ),
    json_: bool = JSON,
) -> None:
    """Carry a federation out in virtual time, with simulated queues and training.

    It leaves a run that `hansa report`, `status` and `replay` can read.
    """
    from hansa.simulator.compare.account import account
    from hansa.simulator.compare.study import checked_target

    changes = tuple(overrides or ())
    imitated = None if from_ is None else Imitated.of(from_, runs)
    if imitated is not None and file is not None:
        changes = (str(file), *changes)  # the first word is a change, too
    if check or write is not None:
        raise typer.Exit(beside(imitated, changes, write=write, as_json=json_))
    spec = _chosen(imitated or _loader(file), changes, scenario)
    if imitated is not None and not json_:
        imitated.show()
    _tell_of_guesses(spec)
    target = checked_target(spec, target)
    first = spec.seed if seed is None else seed
    with _folder(spec, id_, runs, keep=keep) as folder:
        outcomes = _outcomes(spec, range(first, first + seeds), target, folder.path)
        told = account(outcomes, folder.spec(), list(folder.records()), target)
    where = folder.path if keep else None
    code = max(EXIT_CODES.get(one.outcome, 1) for one in outcomes)
    if json_:
        data = {"run": folder.run, "folder": where and str(where), **told.to_json()}
        show_json(data if imitated is None else {**data, "fit": imitated.told()}, code)
    else:
        _show(told, folder, kept=keep)
    raise typer.Exit(code)


def _loader(file: Path | None) -> Load:
    """Return what gives the federation that is simulated."""
    from hansa.spec import load_federation

    if file is None:
        raise UsageError(
            "Give a federation file, or a run.",
            hint="hansa simulate federation.yaml, or hansa simulate --from RUN",
        )
    return lambda changes: load_federation(file, changes)


def _chosen(
    load: Load, overrides: tuple[str, ...], scenario: str | None
) -> FederationSpec:
    """Return the federation in a scenario; what the command line says comes last."""
    from hansa.simulator.compare.study import scenario_changes

    spec = load(overrides)
    if scenario is None:
        return spec
    return load((*scenario_changes(spec.simulation, scenario), *overrides))


def _tell_of_guesses(spec: FederationSpec) -> None:
    """Say whose queue nobody has described, and what is taken instead."""
    from hansa.spec.presets import simulation_of

    guessed = [
        name
        for name, one in spec.facilities.items()
        if "queue" not in simulation_of(one.simulation, one.profile).model_fields_set
    ]
    if guessed:
        say(
            f"The queue of {', '.join(guessed)} is a guess: lognormal waits, 10 "
            "minutes in the median. Describe it under facilities.NAME.simulation.queue."
        )


@contextmanager
def _folder(
    spec: FederationSpec, id_: str | None, runs: Path, *, keep: bool
) -> Iterator[RunFolder]:
    """Yield the run's folder; one that is not kept is gone afterwards."""
    from hansa.coordinator.folder import RunFolder

    if keep:
        yield RunFolder.of(id_ or free_id(f"{spec.name}-sim", runs), runs)
        return
    with tempfile.TemporaryDirectory(prefix="hansa-") as place:
        yield RunFolder.of(id_ or f"{spec.name}-sim", Path(place))


def _outcomes(
    spec: FederationSpec, seeds: range, target: float | None, folder: Path
) -> list[Outcome]:
    """Simulate with each seed; the first run leaves its journal."""
    from hansa.simulator.simulate import simulate as carry_out

    found: list[Outcome] = []
    with progress_bar() as tell:
        for seed in seeds:
            tell("simulating", len(found), len(seeds))
            place = None if found else folder
            found.append(carry_out(spec, seed=seed, target=target, folder=place))
    return found


def _show(told: Account, folder: RunFolder, *, kept: bool) -> None:
    from hansa.simulator.compare.account import (
        facilities_table,
        seeds_table,
        sentences,
        sparkline,
    )

    for line in sentences(told):
        print(line)
    for remark in told.outcome.remarks:
        say(remark)
    if console().is_terminal and (drawn := sparkline(told.outcome)):
        print(drawn)
    show_table(facilities_table(told))
    if len(told.outcomes) > 1:
        show_table(seeds_table(told))
    if kept:
        print(f"Run: {folder.path}  (hansa report {folder.run})")
