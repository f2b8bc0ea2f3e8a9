"""How fast files have gone to facilities and back: what a bench of movers has found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hansa.core.units import format_size, short_duration
from hansa.report.tables import NONE, Table

DIRECTIONS = ("put", "get")
"""To the facility, and back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferSpeed:
    """One size in one direction over one line, measured some times.

    Attributes:
        facility: Where to or where from.
        mover: What moved it.
        direction: ``put`` (to the facility) or ``get``.
        bytes: Size of the files together.
        seconds: Of each transfer, until all was verified and on the disk.
        extra_memory_bytes: Peak of what this process needed more than at the begin,
            with all that the programs had that it started; None: not known here.
        programs_memory_bytes: The part of those programs, as ``rsync``.
    """

    facility: str
    mover: str
    direction: str
    bytes: int
    seconds: tuple[float, ...]
    extra_memory_bytes: int | None
    programs_memory_bytes: int | None

    @property
    def seconds_median(self) -> float:
        """Median of the transfers."""
        return statistics.median(self.seconds)

    @property
    def bytes_per_second_median(self) -> float:
        """Median of the transfers' speeds."""
        return statistics.median(self.speeds)

    @property
    def speeds(self) -> tuple[float, ...]:
        """Bytes per second of each transfer."""
        return tuple(self.bytes / max(seconds, 1e-9) for seconds in self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain JSON data."""
        return {
            **asdict(self),
            "seconds": list(self.seconds),
            "seconds_median": self.seconds_median,
            "bytes_per_second_median": self.bytes_per_second_median,
        }


def label(facility: str, mover: str) -> str:
    """Return how a line is called."""
    return f"{facility}, {mover}"


def lines_of(found: Sequence[TransferSpeed]) -> list[tuple[str, str]]:
    """Return facility and mover of all lines, in the order of the measurements."""
    return list(dict.fromkeys((one.facility, one.mover) for one in found))


def transfers_table(found: Sequence[TransferSpeed]) -> Table:
    """Return a row for each line and size, with both directions."""
    by_key = {(o.facility, o.mover, o.bytes, o.direction): o for o in found}
    rows = []
    for facility, mover in lines_of(found):
        sizes = sorted({key[2] for key in by_key if key[:2] == (facility, mover)})
        for size in sizes:
            both = [by_key.get((facility, mover, size, way)) for way in DIRECTIONS]
            cells = [cell for one in both for cell in _cells(one)]
            rows.append((facility, mover, format_size(size), *cells, _memory(both)))
    return Table(
        title="Transfers: medians",
        columns=(
            "facility", "mover", "size", "put", "put/s", "get", "get/s", "extra memory"
        ),
        rows=tuple(rows),
        left=frozenset({"facility", "mover"}),
    )  # fmt: skip


def _cells(one: TransferSpeed | None) -> tuple[str, str]:
    if one is None:
        return NONE, NONE
    seconds = one.seconds_median
    shown = f"{seconds:.3f}s" if seconds < 1 else short_duration(seconds)
    return shown, format_size(one.bytes_per_second_median)


def _memory(both: Sequence[TransferSpeed | None]) -> str:
    known = [
        one.extra_memory_bytes
        for one in both
        if one is not None and one.extra_memory_bytes is not None
    ]
    return format_size(max(known)) if known else NONE
