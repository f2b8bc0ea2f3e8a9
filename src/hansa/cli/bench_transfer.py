"""`hansa bench transfer`: speed against size, over every facility's own mover."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli.options import JSON, RUNS
from hansa.cli.output import progress_bar, say, show_json, show_table

if TYPE_CHECKING:
    from hansa.coordinator.transfer_bench import Tell, TransferBench
    from hansa.report.transfers import TransferSpeed
    from hansa.spec.federation import FederationSpec

FOLDER = Path("bench")
"""Folder of all pictures, unless said otherwise."""


def transfer(
    file: Path | None = typer.Argument(
        None, help="federation.yaml; without it the movers of this machine alone."
    ),
    facility: list[str] | None = typer.Option(
        None, "--facility", metavar="NAME", help="Only this one; repeat it for others."
    ),
    sizes: str = typer.Option("1MB,10MB,100MB,1GB", help="With commas between them."),
    repeats: int = typer.Option(3, help="Of each size; the median counts.", min=1),
    directory: Path | None = typer.Option(
        None, help="Where to put the files; with a federation's file in runs/."
    ),
    out: Path | None = typer.Option(None, help="Folder of the picture; bench/NAME."),
    json_: bool = JSON,
) -> None:
    """Move random files there and back; draw speed against size, measure memory.

    Files go into the facilities' mailboxes, under the run id `bench`, and are removed
    again by the site agents.
    """
    from hansa.report.transfers import transfers_table
    from hansa.spec import load_federation

    bytes_ = sizes_of(sizes)
    spec = load_federation(file) if file is not None else None
    _check(spec, facility or ())
    with progress_bar() as tell:
        bench = _measured(spec, facility or (), bytes_, repeats, directory, tell)
    _nothing_found(bench)
    data = _data(bench)
    folder = out or FOLDER / (spec.name if spec else "movers")
    data["files"] = [str(path) for path in _write(bench.found, data, folder)]
    code = 6 if bench.failed else 0
    if json_:
        show_json(data, code)
    else:
        show_table(transfers_table(bench.found))
        for path in data["files"]:
            print(path)
    _tell_trouble(bench)
    raise typer.Exit(code)


def sizes_of(text: str) -> list[int]:
    """Return the bytes of sizes with commas between them.

    Raises:
        UsageError: One is no size, or too small to be measured.
    """
    from hansa.coordinator.transfer_bench import LEAST
    from hansa.core.errors import UsageError
    from hansa.core.units import parse_size

    try:
        found = sorted({parse_size(one) for one in text.split(",")})
    except ValueError as error:
        raise UsageError(f"--sizes: {error}.") from None
    if found[0] < LEAST:
        raise UsageError(
            f"--sizes: {found[0]} bytes are too few to be measured.",
            hint=f"Begin with {LEAST} bytes.",
        )
    return found


def _check(spec: FederationSpec | None, names: Sequence[str]) -> None:
    from hansa.core.errors import UsageError

    known = list(spec.facilities) if spec else []
    for name in names:
        if name not in known:
            raise UsageError(
                f"--facility: there is no {name!r}.",
                hint=f"There are {', '.join(known)}."
                if spec
                else "Name the federation's file first: it has the facilities.",
            )


def _measured(
    spec: FederationSpec | None,
    names: Sequence[str],
    sizes: Sequence[int],
    repeats: int,
    directory: Path | None,
    tell: Tell,
) -> TransferBench:
    import asyncio
    from tempfile import TemporaryDirectory

    from hansa.coordinator import transfer_bench as bench

    if spec is not None and directory is None:
        directory = RUNS  # what the server's own Globus collection has to show
        directory.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".bench-", dir=directory) as place:
        folder = Path(place)
        lines: Sequence[bench.Line] = (
            bench.facility_lines(spec, names) if spec else bench.local_lines(folder)
        )
        work = bench.bench_transfers(lines, sizes, repeats, folder, tell)
        return asyncio.run(work)


def _nothing_found(bench: TransferBench) -> None:
    """Stop with the first failure if there is nothing to show."""
    for error in bench.failed.values():
        if not bench.found:
            raise error


def _data(bench: TransferBench) -> dict[str, Any]:
    memory = [
        one.extra_memory_bytes
        for one in bench.found
        if one.extra_memory_bytes is not None
    ]
    return {
        "transfers": [one.to_json() for one in bench.found],
        "extra_memory_bytes": max(memory, default=None),
        "failed": {name: error.to_json() for name, error in bench.failed.items()},
        "left": {name: list(places) for name, places in bench.left.items()},
    }


def _write(
    found: Sequence[TransferSpeed], data: dict[str, Any], folder: Path
) -> list[Path]:
    """Write picture and figures; say so where they can't be, for they took long."""
    from hansa.core.errors import PluginError
    from hansa.report.write import extra_needed, write_files

    text = json.dumps(data, indent=2, ensure_ascii=False)
    files = {"transfer.json": f"{text}\n".encode()}
    try:
        with extra_needed("hansa bench transfer --json"):
            from hansa.report.figures.transfer import transfer_picture
        drawn = transfer_picture(found)
        files |= {"transfer.png": drawn.png, "transfer.svg": drawn.svg}
    except PluginError as error:
        say(f"No picture was drawn: {error.message} {error.hint or ''}")
    try:
        return write_files(files, folder)
    except OSError as error:
        say(f"{folder} can't be written: {error.strerror}.")
        return []


def _tell_trouble(bench: TransferBench) -> None:
    for name, error in bench.failed.items():
        say(f"{name}: {error.message}")
        if error.hint:
            say(f"  help: {error.hint}")
    for name, places in bench.left.items():
        say(f"{name}: this could not be removed: {', '.join(places)}")
