"""`hansa bench …`: speed and memory, measured here and now."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from hansa.cli.output import show_json
from hansa.core.units import format_size


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    group = typer.Typer(no_args_is_help=True, help="Measure speed and memory.")
    group.command()(aggregate)
    group.callback()(_together)
    app.add_typer(group, name="bench")


def _together() -> None:
    """Measure speed and memory."""


def aggregate(
    parameters: int = typer.Option(125_000_000, help="Parameters of the model."),
    dtype: str = typer.Option("bfloat16", help="dtype of versions and updates."),
    updates: int = typer.Option(4, help="Updates that are added up."),
    repeats: int = typer.Option(5, help="Measurements; the median counts."),
    directory: Path | None = typer.Option(None, help="Where to put the files."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Add updates to a model, from file to file, and measure time and memory."""
    from hansa.store.bench import bench_aggregate

    found = bench_aggregate(parameters, dtype, updates, directory, repeats)
    if json_:
        show_json(asdict(found))
        return
    print(f"{updates} updates of {parameters:,} parameters in {dtype}")
    print(f"  seconds       {found.seconds:.3f} (median of {repeats})")
    print(f"  floor         {found.floor_seconds:.3f} (the bytes at memory speed)")
    print(f"  extra memory  {format_size(found.extra_memory_bytes)}")
