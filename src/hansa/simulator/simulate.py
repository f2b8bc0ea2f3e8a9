"""Carry one federation out in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

from hansa.coordinator.core import Coordinator
from hansa.coordinator.folder import RunFolder
from hansa.core.errors import RunConflict, StorageFull
from hansa.core.events import Event
from hansa.journal.line import Record, encode
from hansa.simulator.outcome import Observer, Outcome
from hansa.simulator.scenario import prepare
from hansa.spec.federation import FederationSpec

Note = Callable[[Event, Coordinator], None]
"""Takes an event, and the core before it handles it."""

MOST_VERSIONS, LONGEST_RUN_S = 20_000, 365 * 86_400.0
"""Where a simulation ends that has no such bound itself: its target may be too far."""


@contextmanager
def recorder(path: Path) -> Iterator[Note]:
    """Yield what writes events down as the journal of a run has them.

    Nothing is fsynced: a simulation that dies is simulated again.

    Args:
        path: The journal's file; it must not exist.

    Raises:
        StorageFull: It can't be written; the simulation is simply run again.
    """
    seq = count(1)
    try:
        with path.open("xb") as file:

            def record(event: Event, core: Coordinator) -> None:
                file.write(encode(Record(next(seq), core.digest, event)))

            yield record
    except OSError as error:
        raise StorageFull(
            f"The simulation's journal {path} can't be written: {error.strerror}.",
            hint="Free space, or choose another place with --runs or --no-folder.",
        ) from error


def simulate(
    spec: FederationSpec,
    *,
    seed: int | None = None,
    target: float | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Simulate a federation from its start to its end.

    Args:
        spec: The federation; `spec.simulation` says how (None: its defaults).
        seed: Seed of everything that is drawn; None: that of the federation.
        target: Loss whose time is measured; None: `stop.target`'s.
        folder: Where to leave plan and journal, as a real run does; None: nowhere.

    Returns:
        What it came to. The same federation and seed give the same bytes.

    Raises:
        SpecError: A job can't ever run in the queue that it is meant for.
        SimulationError: A queue or a workload can't be as described.
        RunConflict: The folder has a run in it.
    """
    if seed is not None and seed != spec.seed:
        spec = spec.model_copy(update={"seed": seed})
    if target is None and spec.stop.target is not None:
        target = spec.stop.target.below
    spec, asked = _bounded(spec), spec
    if folder is None:
        return _told(asked, _carried_out(spec, target, spec.name, None))
    run = RunFolder(folder)
    if run.journal.exists():
        raise RunConflict(
            f"There is a run in {folder} already.", hint="Choose another --id."
        )
    run.claim(spec)
    with recorder(run.journal) as record:
        return _told(asked, _carried_out(spec, target, run.run, record))


def _bounded(spec: FederationSpec) -> FederationSpec:
    """Return the federation with an end that comes whatever it learns."""
    stop = spec.stop
    bounds = {
        "rounds": MOST_VERSIONS if stop.rounds is None else stop.rounds,
        "wall_clock": LONGEST_RUN_S if stop.wall_clock is None else stop.wall_clock,
    }
    return spec.model_copy(update={"stop": stop.model_copy(update=bounds)})


def _told(spec: FederationSpec, found: Outcome) -> Outcome:
    """Add a remark if it was the simulation's own bound that ended the run."""
    stop = spec.stop
    versions = stop.rounds is None and found.versions >= MOST_VERSIONS
    time = stop.wall_clock is None and found.wall_clock_s >= LONGEST_RUN_S
    if not (versions or time):
        return found
    remark = (
        f"The simulation ended it, after {found.versions} versions and "
        f"{found.wall_clock_s / 86_400:.0f} days: `stop` sets no bound of that kind."
    )
    return replace(found, remarks=(*found.remarks, remark))


def _carried_out(
    spec: FederationSpec, target: float | None, run: str, record: Note | None
) -> Outcome:
    observer = Observer()
    simulation = prepare(spec, spec.seed, run=run, record=record, watchers=(observer,))
    observer.node_hours = simulation.node_hours
    core = simulation.run()
    found = observer.outcome(spec.strategy.name, spec.seed, core, target)
    return replace(found, remarks=simulation.remarks())
