"""`hansa check`, `profiles`, `plugins` and the dry run: before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli.options import CHANGES, JSON
from hansa.cli.output import show_json, show_table

if TYPE_CHECKING:
    from hansa.spec.federation import FederationSpec


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(check)
    app.command()(profiles)
    app.command()(plugins)
    app.command()(schema)


def check(
    file: Path = typer.Argument(help="federation.yaml"),
    overrides: list[str] | None = CHANGES,
    json_: bool = JSON,
) -> None:
    """Check a federation file and ask every facility whether it is ready."""
    import asyncio

    from hansa.coordinator.preflight import check_all
    from hansa.coordinator.setup import make_coordinator
    from hansa.core.units import format_size
    from hansa.report.tables import Table
    from hansa.spec import load_federation

    spec = load_federation(file, overrides or ())
    make_coordinator(spec)
    checks = asyncio.run(check_all(spec, spec.name))
    code = 3 if any(check.problems for check in checks) else 0
    if json_:
        show_json({check.facility: check.to_json() for check in checks}, code)
        raise typer.Exit(code)
    rows = []
    for one in checks:
        free = one.probe.get("free_bytes")
        told = "; ".join(f"{what} {hint}".strip() for what, hint in one.problems)
        rows.append(
            (
                one.facility,
                "not ready" if one.problems else "ready",
                str(one.probe.get("scheduler", "")),
                "" if free is None else format_size(free),
                str(one.probe.get("mailbox", "")),
                told,
            )
        )
    columns = ("facility", "state", "scheduler", "free", "mailbox", "problems")
    left = frozenset(columns) - {"free"}
    show_table(Table(title=str(file), columns=columns, rows=tuple(rows), left=left))
    raise typer.Exit(code)


def show_dry_run(spec: FederationSpec, run: str, *, as_json: bool) -> None:
    """Print every job script and transfer of a first round; spend nothing."""
    import asyncio

    from hansa.coordinator.preflight import check_all

    checks = asyncio.run(check_all(spec, run))
    transfers = {name: _transfers(spec, run, name) for name in spec.facilities}
    if as_json:
        data = {c.facility: {**c.to_json(), **transfers[c.facility]} for c in checks}
        show_json({"run": run, "facilities": data})
        return
    for check in checks:
        print(f"=== {check.facility}")
        for what, hint in check.problems:
            print(f"problem: {what} {hint}".rstrip())
        for direction, what in transfers[check.facility].items():
            print(f"{direction}: {what}")
        print(f"script:\n{check.script}")
    print("Nothing was written, moved or submitted.")


def _transfers(spec: FederationSpec, run: str, name: str) -> dict[str, str]:
    mover = spec.facilities[name].mover.type
    size = _source_bytes(spec)
    return {
        "send": f"versions/<n> ({size}, {spec.model.dtype}) by {mover} to "
        f"{run}/versions/<n> in the mailbox, once a version",
        "receive": f"{run}/updates/<assignment> by {mover}, as {spec.update.dtype}, "
        "once a round",
    }


def _source_bytes(spec: FederationSpec) -> str:
    from hansa.core.units import format_size

    source = Path(spec.model.source)
    files = list(source.glob("*.safetensors")) if source.is_dir() else []
    if not files:
        return "size known when the first version is made"
    return format_size(sum(file.stat().st_size for file in files))


def profiles(
    action: str = typer.Argument("list", help="list or show"),
    name: str | None = typer.Argument(None, help="as alcf/polaris"),
    json_: bool = JSON,
) -> None:
    """List the machines that Hansa knows, or show what it knows of one."""
    from hansa.core.errors import UsageError
    from hansa.spec.profiles import load_profile, profile_names
    from hansa.spec.yaml import dump

    if action == "list" and name is None:
        titles = {one: load_profile(one).title for one in profile_names()}
        if json_:
            show_json(titles)
            return
        for one, title in titles.items():
            print(f"{one:24} {title}")
        return
    if action != "show" or name is None:
        raise UsageError("Say `hansa profiles` or `hansa profiles show NAME`.")
    data = load_profile(name).model_dump(mode="json", exclude_none=True)
    if json_:
        show_json(data)
        return
    print(dump(data), end="")


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
