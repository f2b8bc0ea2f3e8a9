"""`hansa bench …`: speed and memory, measured here and now."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.bench_throughput import throughput
from hansa.cli.bench_transfer import transfer
from hansa.cli.output import progress_bar, show_json
from hansa.core.units import format_size

if TYPE_CHECKING:
    from hansa.store.bench import AggregateBench


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    group = typer.Typer(no_args_is_help=True, help="Measure speed and memory.")
    group.command()(aggregate)
    group.command()(codec)
    group.command("round")(round_)
    group.command()(simulate)
    group.command()(throughput)
    group.command()(transfer)
    group.callback()(_together)
    app.add_typer(group, name="bench")


def _together() -> None:
    """Measure speed and memory."""


def aggregate(
    parameters: int = typer.Option(125_000_000, help="Parameters of the model."),
    dtype: str = typer.Option("bfloat16", help="dtype of versions and updates."),
    updates: int = typer.Option(4, help="Updates that are added up."),
    threads: int | None = typer.Option(
        None, help="Threads at work; as many as there are cores, at most 4.", min=1
    ),
    reducer: str = typer.Option(
        "linear", help="linear, median, trimmed_mean, clipped_mean or krum."
    ),
    optimizer: str = typer.Option(
        "none", help="none, momentum, adagrad, adam or yogi."
    ),
    repeats: int = typer.Option(5, help="Measurements; the median counts.", min=1),
    directory: Path | None = typer.Option(None, help="Where to put the files."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Add updates to a model, from file to file; measure time and memory.

    The yardstick is a C loop on one thread over the same files, compiled here and now
    and run in turn with it.
    """
    from hansa.store.bench import Task, bench_aggregate

    task = Task(
        parameters=parameters,
        dtype=dtype,
        updates=updates,
        threads=threads,
        reducer=reducer,
        optimizer=optimizer,
        repeats=repeats,
    )
    with progress_bar() as tell:
        found = bench_aggregate(task, directory, tell)
    if json_:
        show_json(asdict(found))
    else:
        _show_aggregate(found, repeats)


def _show_aggregate(found: AggregateBench, repeats: int) -> None:
    moved = format_size(found.bytes_read + found.bytes_written)
    memory = format_size(found.extra_memory_bytes)
    print(
        f"{found.updates} updates of {found.parameters:,} parameters in {found.dtype}, "
        f"{found.reducer}, optimizer {found.optimizer}, {found.threads} threads"
    )
    print(f"  seconds       {found.seconds:.3f}  {moved} moved; median of {repeats}")
    if found.reference_seconds is None or found.ratio is None:
        print(f"  C loop        not measured: {found.reference}")
    else:
        print(f"  C loop        {found.reference_seconds:.3f}  ({found.reference})")
        print(f"  ratio         {found.ratio:.2f}")
    if found.linear_seconds != found.seconds:
        print(f"  linear sum    {found.linear_seconds:.3f}")
        print(f"  ratio to it   {found.linear_ratio:.2f}")
    print(f"  floor         {found.floor_seconds:.3f}  (the bytes at memory speed)")
    print(f"  hashes        {found.hash_seconds_per_gb:.2f}  seconds per GB, added")
    print(f"  published     {found.published_seconds:.3f}  (all verified and on disk)")
    print(f"  extra memory  {memory}")


def codec(
    parameters: int = typer.Option(25_000_000, help="Numbers in the update."),
    repeats: int = typer.Option(3, help="Measurements; the median counts."),
    directory: Path | None = typer.Option(None, help="Where to put the files."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Write and read an update in every form; measure size, speed and error."""
    from hansa.store.codec_bench import bench_codec

    found = bench_codec(parameters, directory, repeats)
    if json_:
        forms = [asdict(form) for form in found]
        show_json({"parameters": parameters, "forms": forms})
        return
    print(f"An update of {parameters:,} numbers; MB/s of fp32, files on both sides")
    head = ("dtype", "compress", "size", "ratio", "encode", "decode", "error", "bound")
    print("".join(f"{name:>10}" for name in head))
    for form in found:
        bound = "exact" if form.of_bound is None else f"{form.of_bound:.1%}"
        print(
            f"{form.dtype:>10}{form.compress:>10}{format_size(form.bytes):>10}"
            f"{form.ratio:>10.2f}{form.encode_mb_s:>10.0f}{form.decode_mb_s:>10.0f}"
            f"{form.relative_error:>10.1e}{bound:>10}"
        )
    print("error: norm of what is lost over the norm; bound: largest share of it used")


def round_(
    megabytes: int = typer.Option(100, help="Size of the model, in 10^6 bytes."),
    dtype: str = typer.Option("float32", help="dtype of the model."),
    update_dtype: str = typer.Option("bfloat16", help="dtype of the updates."),
    facilities: int = typer.Option(2, help="Facilities, all on this machine."),
    rounds: int = typer.Option(7, help="Rounds measured; the median counts."),
    linger: bool = typer.Option(
        True, help="Jobs keep their allocations, or each round has new ones."
    ),
    link: bool = typer.Option(
        True,
        "--link/--copy",
        help="Versions are linked into the mailboxes, which share the server's file "
        "system, or copied.",
    ),
    directory: Path | None = typer.Option(None, help="Where to put the files."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Carry out rounds that train nothing: what is left is the overhead."""
    from hansa.coordinator.bench import bench_round

    found = bench_round(
        megabytes,
        dtype=dtype,
        update_dtype=update_dtype,
        facilities=facilities,
        rounds=rounds,
        linger=linger,
        link=link,
        directory=directory,
    )
    if json_:
        show_json(asdict(found))
        return
    print(f"a round of {facilities} facilities, a model of {megabytes} MB in {dtype}")
    print(f"  seconds       {found.seconds_median:.3f} (median of {rounds})")
    print(f"  moved         {format_size(found.bytes)}")
    for name, seconds in found.parts.items():
        print(f"    {name:11} {seconds:.3f}")


def simulate(
    strategy: str = typer.Option("fedavg", help="Strategy, with its own defaults."),
    rounds: int = typer.Option(
        20_000, help="Rounds of facilities that a simulation has.", min=1
    ),
    linger: bool = typer.Option(
        True, help="Jobs keep their allocations, or each round has new ones."
    ),
    repeats: int = typer.Option(5, help="Simulations; the median counts.", min=1),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Simulate four facilities with a surrogate on one core; measure the speed."""
    from hansa.simulator.bench import bench_simulate

    with progress_bar() as tell:
        found = bench_simulate(
            strategy, rounds=rounds, linger=linger, repeats=repeats, tell=tell
        )
    if json_:
        show_json(asdict(found))
        return
    print(
        f"{found.rounds} rounds of {found.facilities} facilities, {found.strategy}, "
        f"{found.events} events"
    )
    print(f"  seconds       {found.seconds_median:.3f} (median of {repeats})")
    print(f"  rounds/s      {found.facility_rounds_per_second:.0f}")
    print(f"  events/s      {found.events_per_second:.0f}")
