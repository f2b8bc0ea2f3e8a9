"""How fast movers carry files of some sizes, and how much memory that takes.

What travels is random and never the same twice, so no service saves the way. Each line
is tried with a few bytes first: connections are open and modules loaded when it counts.
One transfer goes at a time.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from hansa.coordinator.bundle import Bundle
from hansa.coordinator.contact import Contact
from hansa.coordinator.footprint import Footprint
from hansa.coordinator.setup import make_gateway, make_mover
from hansa.core.errors import HansaError
from hansa.core.ids import assignment_id
from hansa.core.units import format_size
from hansa.mover.base import Moved, Mover, Place, Progress
from hansa.mover.posix import PosixMover, PosixOptions
from hansa.report.transfers import DIRECTIONS, TransferSpeed, label
from hansa.site import rpc
from hansa.spec.federation import FacilitySpec, FederationSpec

log = logging.getLogger(__name__)

RUN: Final = "bench"
"""Run id of all that is moved for a bench."""

LEAST: Final = 1000
"""Bytes of the smallest files."""

_WARM_UP: Final = 64_000

Tell = Callable[[str, int, int], None]
"""Called with what is moved, how many bytes are, and of how many."""

Watch = Callable[[Progress], None]


class Line(Protocol):
    """A way to one facility, or to a folder of this machine."""

    facility: str
    mover: str

    async def open(self, watch: Watch) -> Mover:
        """Return what moves files there; `watch` is told how it goes."""
        ...

    async def remove(self, names: Sequence[str]) -> list[str]:
        """Remove updates of the run `RUN` there; return the names of those left."""
        ...

    def place(self, name: str) -> str:
        """Return where an update of the run `RUN` lies there."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class FacilityLine:
    """The way to a facility, by its own gateway and mover.

    Args:
        name: The facility's name.
        facility: As the plan has it.
        patience: Seconds without an answer after which it counts as lost.
    """

    def __init__(self, name: str, facility: FacilitySpec, patience: float) -> None:
        self.facility, self.mover = name, facility.mover.type
        self._spec, self._patience = facility, patience
        self._contact: Contact | None = None
        self._mailbox = ""

    async def open(self, watch: Watch) -> Mover:
        """See `Line.open`."""
        gateway = make_gateway(self._spec)
        contact = Contact(self.facility, gateway, patience=self._patience)
        self._contact = contact
        health = await contact.call(rpc.probe())
        self._mailbox = str(health["mailbox"])
        place = Place(
            mailbox=Path(self._mailbox),
            facility=self.facility,
            ask=contact.call,
            watch=watch,
        )
        return make_mover(self._spec, place)

    async def remove(self, names: Sequence[str]) -> list[str]:
        """See `Line.remove`; the site agent does it."""
        if self._contact is None:
            return list(names)
        # Once: a facility that is away is asked again with the next files.
        reply = await self._contact.call_once(rpc.tidy(RUN, (), names))
        gone = set(map(str, reply.get("collected", ())))
        return [name for name in names if name not in gone]

    def place(self, name: str) -> str:
        """See `Line.place`."""
        return f"{self._mailbox}/{_place(name)}"

    async def close(self) -> None:
        """See `Line.close`."""
        if self._contact is not None:
            await self._contact.close()


class LocalLine:
    """The way to a folder of this machine, by the mover for shared file systems.

    Args:
        folder: The mailbox.
        link: Whether what is put shares its bytes with what was here.
    """

    def __init__(self, folder: Path, *, link: bool) -> None:
        self.facility = "this machine"
        self.mover = "posix link" if link else "posix copy"
        self._folder, self._link = folder, link

    async def open(self, watch: Watch) -> Mover:
        """See `Line.open`."""
        place = Place(mailbox=self._folder, watch=watch)
        return PosixMover(PosixOptions(link=self._link), place)

    async def remove(self, names: Sequence[str]) -> list[str]:
        """See `Line.remove`."""
        for name in names:
            await asyncio.to_thread(shutil.rmtree, self.place(name), ignore_errors=True)
        return []

    def place(self, name: str) -> str:
        """See `Line.place`."""
        return f"{self._folder}/{_place(name)}"

    async def close(self) -> None:
        """See `Line.close`."""


def _place(name: str) -> str:
    return f"{RUN}/updates/{name}"


def facility_lines(
    spec: FederationSpec, names: Sequence[str] = ()
) -> tuple[FacilityLine, ...]:
    """Return the lines to some facilities of a federation; no name: to all."""
    return tuple(
        FacilityLine(name, facility, spec.patience)
        for name, facility in spec.facilities.items()
        if name in names or not names
    )


def local_lines(folder: Path) -> tuple[LocalLine, LocalLine]:
    """Return the lines that need no facility: a copy and a link on this machine."""
    copy = LocalLine(folder / "copied", link=False)
    return copy, LocalLine(folder / "linked", link=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferBench:
    """What `bench_transfers` found.

    Attributes:
        found: All measurements, line by line, each with the smallest size first.
        failed: By line, what went wrong there; it was measured no further.
        left: By line, what could not be removed there.
    """

    found: tuple[TransferSpeed, ...]
    failed: dict[str, HansaError]
    left: dict[str, tuple[str, ...]]


async def bench_transfers(
    lines: Sequence[Line],
    sizes: Sequence[int],
    repeats: int,
    folder: Path,
    tell: Tell = lambda *_: None,
) -> TransferBench:
    """Measure every size over every line, there and back; remove it all again.

    Args:
        lines: What to measure.
        sizes: Bytes, each at least `LEAST`.
        repeats: Transfers of each size in each direction.
        folder: Where files lie on this side: the largest size, twice.
        tell: Told how it goes.

    Returns:
        What was found, of all lines that did not fail.

    Raises:
        StorageFull: The disk of `folder` is full.
        OSError: `folder` can't be written.
    """
    total = 2 * repeats * len(lines) * sum(sizes)
    async with AsyncExitStack() as stack:
        gauge = _Gauge(tell, total)
        trials = [_Trial(line, gauge) for line in lines]
        for trial in trials:
            stack.push_async_callback(trial.close)
        await _carry_out(trials, _WARM_UP, 0, folder)
        gauge.done = 0
        for size in sorted(sizes):
            await _carry_out(trials, size, repeats, folder)
    return TransferBench(
        found=tuple(speed for trial in trials for speed in trial.found),
        failed={one.name: one.error for one in trials if one.error is not None},
        left={one.name: one.places_left() for one in trials if one.left},
    )


async def _carry_out(
    trials: Sequence[_Trial], size: int, repeats: int, folder: Path
) -> None:
    with TemporaryDirectory(prefix="hansa-bench-", dir=folder) as place:
        bundle = await asyncio.to_thread(Bundle.make, Path(place) / "files", size)
        for trial in trials:
            await trial.carry_out(bundle, repeats)


@dataclass(slots=True)
class _Gauge:
    """Tells how many bytes have gone over all lines."""

    tell: Tell
    total: int
    done: int = 0
    words: str = ""

    def say(self, words: str) -> None:
        self.words = words
        self.tell(words, self.done, self.total)

    def count(self, size: int) -> None:
        self.done = min(self.done + size, self.total)

    def see(self, progress: Progress) -> None:
        """Count what has come of the transfer under way."""
        self.tell(self.words, min(self.done + progress.bytes, self.total), self.total)


@dataclass(slots=True)
class _Trial:
    """One line, measured until it fails."""

    line: Line
    gauge: _Gauge
    mover: Mover | None = None
    error: HansaError | None = None
    found: list[TransferSpeed] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    tries: int = 0

    @property
    def name(self) -> str:
        return label(self.line.facility, self.line.mover)

    async def carry_out(self, bundle: Bundle, repeats: int) -> None:
        """Measure one size; without repeats only try if it goes."""
        if self.error is not None:
            return
        try:
            mover = await self._open()
            trips = [await self._trip(mover, bundle) for _ in range(repeats or 1)]
        except HansaError as error:
            self.error = error
            return
        for direction, timed in zip(DIRECTIONS, zip(*trips, strict=True), strict=True):
            if repeats:
                self.found.append(self._speed(direction, bundle.bytes, timed))

    def places_left(self) -> tuple[str, ...]:
        return tuple(self.line.place(name) for name in self.left)

    async def _open(self) -> Mover:
        if self.mover is None:
            self.gauge.say(f"{self.name}: the way is looked for")
            self.mover = await self.line.open(self.gauge.see)
        return self.mover

    async def _trip(self, mover: Mover, bundle: Bundle) -> tuple[_Timed, _Timed]:
        """Put files that were never there before, fetch them, and remove them."""
        self.tries += 1
        moment = time.time_ns() // 10**8 % 10**9
        name = assignment_id("trial", moment, "bench", self.tries)
        place, back = _place(name), bundle.folder.with_name("back")
        await asyncio.to_thread(bundle.renew)
        self.left.append(name)
        try:
            words = f"{self.name}: {format_size(bundle.bytes)}"
            self.gauge.say(f"{words} there")
            put = await _timed(mover.put(bundle.folder, place, bundle.files))
            self.gauge.count(bundle.bytes)
            self.gauge.say(f"{words} back")
            get = await _timed(mover.get(place, back, bundle.files))
            self.gauge.count(bundle.bytes)
        finally:
            await asyncio.to_thread(shutil.rmtree, back, ignore_errors=True)
            await self._remove()
        return put, get

    async def _remove(self) -> None:
        """Remove all that is still there; what can't be is tried again, and told."""
        try:
            self.left = list(await self.line.remove(self.left))
        except HansaError as error:
            log.warning("%s: %s", self.name, error)

    def _speed(
        self, direction: str, size: int, timed: Sequence[_Timed]
    ) -> TransferSpeed:
        prints = [one.footprint for one in timed]
        return TransferSpeed(
            facility=self.line.facility,
            mover=self.line.mover,
            direction=direction,
            bytes=size,
            seconds=tuple(one.seconds for one in timed),
            extra_memory_bytes=_largest(one.extra for one in prints),
            programs_memory_bytes=_largest(one.programs for one in prints),
        )

    async def close(self) -> None:
        """Let go of mover and line."""
        if self.mover is not None:
            await self.mover.close()
        await self.line.close()


@dataclass(frozen=True, slots=True)
class _Timed:
    seconds: float
    footprint: Footprint


async def _timed(transfer: Awaitable[Moved]) -> _Timed:
    with Footprint() as footprint:
        began = time.perf_counter()
        await transfer
        seconds = time.perf_counter() - began
    return _Timed(seconds, footprint)


def _largest(figures: Iterable[int | None]) -> int | None:
    return max((one for one in figures if one is not None), default=None)
