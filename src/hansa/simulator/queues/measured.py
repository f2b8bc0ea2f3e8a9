"""Waits that were measured, from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from hansa.core.errors import SimulationError

_HINT = (
    "The file needs a first line with the names of its columns: `wait_s` and, if "
    "known, `submitted_s`, `nodes` and `time_s`; below it plain numbers."
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One job's wait.

    Attributes:
        wait: Seconds from its submission to its start.
        submitted: When it was submitted, in seconds of any clock; None: not known.
        nodes: Nodes that it asked for; None: not known.
        walltime: Seconds that it asked for; None: not known.
    """

    wait: float
    submitted: float | None = None
    nodes: float | None = None
    walltime: float | None = None


def read_measurements(path: Path) -> list[Measurement]:
    """Read measured waits, in the order of the file.

    Columns with other names are not looked at.

    Raises:
        SimulationError: The file can't be read, has no rows, or a number is missing,
            none, or impossible; with the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(_rows(path, csv.DictReader(file)))
    except OSError as error:
        raise SimulationError(
            f"The measured waits in {path} can't be read: {error.strerror}.",
            hint="Look at `simulation.queue.file`.",
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SimulationError(f"{path} is no CSV file: {error}.", hint=_HINT) from error
    if not found:
        raise SimulationError(f"{path} holds no measured waits.", hint=_HINT)
    return found


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[Measurement]:
    columns = reader.fieldnames or ()
    if columns and "wait_s" not in columns:
        raise SimulationError(f"{path}:1: there is no column `wait_s`.", hint=_HINT)
    for row in reader:
        where = f"{path}:{reader.line_num}"
        wait = _number(row, "wait_s", where)
        if wait is None or wait < 0:
            raise SimulationError(
                f"{where}: `wait_s` is {wait:g}, and no wait is negative.",
                hint="Correct the line or take it out.",
            )
        yield Measurement(
            wait,
            _number(row, "submitted_s", where),
            _positive(row, "nodes", where),
            _positive(row, "time_s", where),
        )


def _positive(row: Mapping[str, str | None], column: str, where: str) -> float | None:
    number = _number(row, column, where)
    if number is not None and number <= 0:
        raise SimulationError(
            f"{where}: `{column}` is {number:g}, and no job asks for that.",
            hint="Correct the line or take it out.",
        )
    return number


def _number(row: Mapping[str, str | None], column: str, where: str) -> float | None:
    """Return a number, or None where the file has no such column."""
    if column not in row:
        return None
    text = (row[column] or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        what = f"{text!r}, which is no number" if text else "empty"
        raise SimulationError(
            f"{where}: `{column}` is {what}.", hint="Correct the line or take it out."
        )
    return number
