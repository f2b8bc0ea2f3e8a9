"""`hansa plan`, `plugins`, `schema` and the dry run: before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli import plan_memory, profiles
from hansa.cli.options import CHANGES, FOLDER, JSON, RUNS
from hansa.cli.output import show_json
from hansa.core.errors import UsageError

if TYPE_CHECKING:
    from hansa.coordinator.planning import FacilityPlan
    from hansa.spec.federation import FederationSpec


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(plan)
    profiles.register(app)
    app.command()(plugins)
    app.command()(schema)


def plan(
    file: Path | None = typer.Argument(None, help="federation.yaml"),
    overrides: list[str] | None = CHANGES,
    memory: bool = plan_memory.MEMORY,
    model: str | None = plan_memory.MODEL,
    gpu_memory: str | None = plan_memory.GPU_MEMORY,
    ranks: int | None = plan_memory.RANKS,
    profile: list[str] | None = plan_memory.PROFILES,
    nodes: int = plan_memory.NODES,
    work: list[str] | None = plan_memory.WORK,
    lora: int | None = plan_memory.LORA,
    runs: Path = FOLDER,
    json_: bool = JSON,
) -> None:
    """Print the exact job script of every facility, and what would move.

    Where a facility has the key `site`, a copy of its site.yaml, its script is rendered
    here and no network is needed; the others are asked. With --memory it is said how
    the model is spread at each facility, what memory that takes and what a round costs;
    with --model that needs no federation.
    """
    if model is not None:
        there = plan_memory.machines(profile or (), nodes, gpu_memory, ranks)
        rows = plan_memory.of_model(model, machines=there, work=work or (), lora=lora)
        raise typer.Exit(plan_memory.show(model, rows, as_json=json_))
    if file is None:
        raise UsageError(
            "There is no federation file to plan.",
            hint="`hansa plan FILE`, or `hansa plan --memory --model llama-2-7b ...`.",
        )
    from hansa.spec import load_federation

    spec = load_federation(file, overrides or ())
    if memory:
        rows = plan_memory.of_federation(spec, runs)
        raise typer.Exit(plan_memory.show(spec.name, rows, as_json=json_))
    code = _show(spec, spec.name, as_json=json_, runs=runs)
    if code:
        raise typer.Exit(code)


def show_dry_run(spec: FederationSpec, run: str, *, as_json: bool) -> int:
    """Print every job script and transfer of a first round; spend nothing.

    Returns:
        The exit code: 3 if a facility has a problem.
    """
    code = _show(spec, run, as_json=as_json)
    if not as_json:
        print("Nothing was written, moved or submitted.")
    return code


def _show(spec: FederationSpec, run: str, *, as_json: bool, runs: Path = RUNS) -> int:
    import asyncio

    from hansa.coordinator.planning import plan_all

    plans = asyncio.run(plan_all(spec, run, runs))
    code = 3 if any(one.problems for one in plans) else 0
    if as_json:
        facilities = {one.facility: one.to_json() for one in plans}
        strategy = {"name": spec.strategy.name, **_options(spec)}
        show_json({"run": run, "strategy": strategy, "facilities": facilities}, code)
        return code
    print(_strategy(spec))
    for one in plans:
        print("\n".join(_lines(one, spec, run)))
    return code


def _options(spec: FederationSpec) -> dict[str, Any]:
    """Return all keys of the strategy that have a value, defaults among them."""
    from hansa.coordinator.setup import strategy_options

    return strategy_options(spec).model_dump(mode="json", exclude_none=True)


def _strategy(spec: FederationSpec) -> str:
    import json

    words = [f"{key}: {json.dumps(value)}" for key, value in _options(spec).items()]
    return f"strategy: {spec.strategy.name} ({', '.join(words)})"


def _lines(one: FacilityPlan, spec: FederationSpec, run: str) -> list[str]:
    lines = [f"=== {one.facility}"]
    for what, hint in one.problems:
        lines.append(f"problem: {what}")
        if hint:
            lines.append(f"  help: {hint}")
    lines.append(f"job: {_job(one)}")
    if one.memory is not None:
        lines.append(f"memory: {plan_memory.sentence(one.memory)}")
    lines += [f"{way}: {what}" for way, what in _moves(one, spec, run).items()]
    lines += [f"note: {note}" for note in one.notes]
    if one.script:
        lines += [f"script: {one.source}", one.script.rstrip("\n")]
    return [*lines, ""]


def _job(one: FacilityPlan) -> str:
    from hansa.core.units import format_duration

    parts = [
        f"{one.nodes} x {one.ranks_per_node} ranks"
        if one.ranks_per_node is not None
        else f"nodes: {one.nodes}",
        format_duration(one.time_s),
        f"queue {one.queue or 'of the scheduler'}",
        f"account {one.account or 'of the user'}",
    ]
    return ", ".join([*parts, one.scheduler] if one.scheduler else parts)


def _moves(one: FacilityPlan, spec: FederationSpec, run: str) -> dict[str, str]:
    from hansa.core.units import format_size

    sizes, unknown = one.sizes, "size known when the first version is made"
    down = unknown if sizes.version is None else format_size(sizes.version)
    up = unknown if sizes.update is None else format_size(sizes.update)
    return {
        "send": f"versions/<n> ({down}, {spec.model.dtype}) by {one.mover} to "
        f"{run}/versions/<n> in the mailbox, once a version",
        "receive": f"{run}/updates/<assignment> ({up}, {spec.update.dtype}) by "
        f"{one.mover}, once an assignment",
    }


def plugins(json_: bool = JSON) -> None:
    """List all plug-ins and whether they can be loaded."""
    from hansa.core import plugins as found
    from hansa.core.errors import PluginError

    table: dict[str, dict[str, Any]] = {}
    for group in found.GROUPS:
        table[group] = {}
        for name in found.names(group):
            try:
                found.find(group, name)
                table[group][name] = "ok"
            except PluginError as error:
                table[group][name] = error.message
    if json_:
        show_json(table)
        return
    for group, members in table.items():
        print(group)
        for name, state in members.items():
            print(f"  {name:16} {state}")


def schema(
    what: str = typer.Argument("federation", help="federation or site"),
) -> None:
    """Print the JSON Schema of a file, for editors."""
    import json

    from hansa.core.errors import UsageError
    from hansa.spec.schema import federation_schema, site_schema

    kinds = {"federation": federation_schema, "site": site_schema}
    if what not in kinds:
        raise UsageError(f"There is no schema of {what!r}; say federation or site.")
    print(json.dumps(kinds[what](), indent=2))
