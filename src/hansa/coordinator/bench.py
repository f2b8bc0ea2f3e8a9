"""How much time a round takes beside the training itself.

A whole federation of local facilities runs as any other does: its own processes, the
local queue, everything hashed and verified on both sides. Only the training is left out
(the trainer ``noop``), so all that is measured is overhead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from hansa.coordinator.folder import RunFolder
from hansa.coordinator.launch import carry_out
from hansa.core.errors import WorkerError
from hansa.core.events import (
    AssignmentFailed,
    Event,
    JobQueued,
    ModelStaged,
    UpdateArrived,
    VersionPublished,
)
from hansa.spec.federation import FederationSpec
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump
from hansa.store.dtypes import stored

WARM_UP: Final = 1
"""Rounds at the beginning that don't count: they start what later ones use."""

PARTS: Final = (
    "stage",
    "submit",
    "wait",
    "startup",
    "train",
    "write",
    "transfer",
    "verify",
    "aggregate",
)
"""Parts of a round in their order, by the facility that came last.

``wait`` is the queue, the start of processes, the handover to a job that lingers, and
the time until news is noticed; ``startup`` is reading and verifying the version.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundBench:
    """What `bench_round` measured.

    Attributes:
        parameters: Numbers in the model.
        dtype: Format of the model.
        update_dtype: Format of the updates.
        facilities: How many train in each round.
        linger: Whether jobs keep their allocations from round to round.
        link: Whether versions were linked into the mailboxes, and not copied.
        bytes: Bytes that travelled in a round, versions out and updates back.
        rounds: Rounds that count.
        seconds: Of each of them, from one version to the next.
        seconds_median: Their median.
        parts: Median seconds of each of `PARTS`.
    """

    parameters: int
    dtype: str
    update_dtype: str
    facilities: int
    linger: bool
    link: bool
    bytes: int
    rounds: int
    seconds: tuple[float, ...]
    seconds_median: float
    parts: dict[str, float]


def bench_round(
    megabytes: int,
    *,
    dtype: str = "float32",
    update_dtype: str = "bfloat16",
    facilities: int = 2,
    rounds: int = 7,
    linger: bool = True,
    link: bool = True,
    directory: Path | None = None,
) -> RoundBench:
    """Carry out some rounds that train nothing, and measure them.

    Args:
        megabytes: Size of the model (10^6 bytes).
        dtype: Format of the model.
        update_dtype: Format of the updates.
        facilities: How many there are; all on this machine.
        rounds: How many count; one more goes before them.
        linger: Whether jobs stay for the next round, or each round has new ones.
        link: Whether versions are linked into the mailboxes, as they may be where
            server and facility share a file system, or copied.
        directory: Where the files go (removed afterwards); None takes the system's
            place for temporary files.

    Raises:
        WorkerError: An order failed.
        HansaError: Whatever else a run can meet.
    """
    size = megabytes * 1_000_000 // stored(dtype).numpy.itemsize
    facility = {
        "mover": {"type": "posix", "link": link},
        "linger": "5m" if linger else 0,
        "work": {"steps": 1},
    }
    plan = _plan(size, dtype, update_dtype, rounds + WARM_UP)
    with TemporaryDirectory(
        prefix="hansa-bench-", dir=directory, ignore_cleanup_errors=True
    ) as place:
        spec = _federation(Path(place), plan, facility, facilities)
        events = _run(spec, Path(place))
    # A queue that is still about to leave may have written while that was removed.
    rmtree(place, ignore_errors=True)
    measured = list(_rounds(events))[WARM_UP:]
    seconds = tuple(one.seconds for one in measured)
    return RoundBench(
        parameters=size,
        dtype=dtype,
        update_dtype=update_dtype,
        facilities=facilities,
        linger=linger,
        link=link,
        bytes=round(median(one.bytes for one in measured)),
        rounds=len(measured),
        seconds=seconds,
        seconds_median=median(seconds),
        parts={part: median(one.parts[part] for one in measured) for part in PARTS},
    )


def _plan(size: int, dtype: str, update_dtype: str, rounds: int) -> dict[str, Any]:
    """Return the federation file without its facilities."""
    return {
        "name": "bench",
        "model": {
            "trainer": "noop",
            "source": "zeros",
            "dtype": dtype,
            "options": {"parameters": size},
        },
        "task": "noop",
        "strategy": "fedavg",
        "stop": {"rounds": rounds},
        "evaluation": {"every": rounds, "local": False},
        "update": {"dtype": update_dtype},
    }


def _federation(
    place: Path, plan: Mapping[str, Any], facility: Mapping[str, Any], count: int
) -> FederationSpec:
    """Write the site files and return the federation of so many alike facilities."""
    facilities = {}
    for name in (f"facility-{number}" for number in range(1, count + 1)):
        site = {
            "name": name,
            "scheduler": "local",
            "mailbox": f"mailboxes/{name}",
            "cache": "cache",
            "tasks": {"noop": {}},
        }
        (place / f"{name}.yaml").write_text(dump(site), encoding="utf-8")
        gateway = {"type": "local", "site": f"{name}.yaml"}
        facilities[name] = {**facility, "gateway": gateway}
    text = dump({**plan, "facilities": facilities})
    return federation_from_text(text, name="the benchmark's plan", base=place)


def _run(spec: FederationSpec, place: Path) -> list[Event]:
    folder = RunFolder(place / "runs" / "bench")
    folder.claim(spec)
    watcher = _Watcher()
    asyncio.run(carry_out(spec, folder, watchers=(watcher,)))
    for event in watcher.events:
        if isinstance(event, AssignmentFailed):
            raise WorkerError(f"{event.assignment} failed: {event.reason}")
    return watcher.events


class _Watcher:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


@dataclass(frozen=True, slots=True)
class _Round:
    seconds: float
    bytes: int
    parts: dict[str, float]


def _rounds(events: Sequence[Event]) -> Iterator[_Round]:
    """Yield each round: what lies between one version and the next."""
    began, seen = 0.0, list[Event]()
    for event in events:
        if isinstance(event, VersionPublished):
            if event.version:
                yield _Round(event.at - began, _bytes(seen), _parts(seen, began, event))
            began, seen = event.at, []
        else:
            seen.append(event)


def _bytes(events: Sequence[Event]) -> int:
    moved = (e.bytes for e in events if isinstance(e, ModelStaged | UpdateArrived))
    return sum(moved)


def _parts(
    events: Sequence[Event], began: float, end: VersionPublished
) -> dict[str, float]:
    """Divide a round up by the facility whose update came last."""
    last = [event for event in events if isinstance(event, UpdateArrived)][-1]
    mine = [e for e in events if getattr(e, "facility", "") == last.facility]
    staged = _at(mine, ModelStaged, began)
    queued = _at(mine, JobQueued, staged)
    told = {name: last.timings.get(f"{name}_s", 0.0) for name in PARTS[3:8]}
    return {
        "stage": staged - began,
        "submit": queued - staged,
        "wait": last.at - queued - sum(told.values()),
        **told,
        "aggregate": end.at - last.at,
    }


def _at(events: Sequence[Event], kind: type[Event], default: float) -> float:
    """Return when the last event of a kind was, if there was one."""
    return max((e.at for e in events if isinstance(e, kind)), default=default)
