"""Does a fit reproduce the run that it came from?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.coordinator.folder import RunFolder
from hansa.core.errors import SimulationError
from hansa.core.events import Event, VersionPublished
from hansa.core.units import short_duration
from hansa.report import summarise
from hansa.report.model import RunSummary
from hansa.report.tables import NONE, Table, hours
from hansa.simulator.fit import fitted
from hansa.simulator.simulate import simulate
from hansa.spec.federation import FederationSpec

TOLERANCE = 0.1
"""Share by which the simulated wall clock may differ from the real one."""

_MOST_VERSIONS = 10

RUN, NODE_HOURS = "run", "node-hours"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One number of a run, as it was and as it is simulated.

    Attributes:
        where: The facility, or ``run``.
        what: What it is, in words.
        real: In seconds, or node-hours.
        simulated: Likewise.
    """

    where: str
    what: str
    real: float
    simulated: float

    @property
    def error(self) -> float | None:
        """The simulated number's relative error; None where the real one is 0."""
        return (self.simulated - self.real) / self.real if self.real else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A run beside its own simulation.

    Attributes:
        wall_clock: How long both took, or if the real run is not finished, how long
            until its newest version.
        rows: Everything that was compared, `wall_clock` first.
        tolerance: Relative error of the wall clock that is tolerated.
    """

    wall_clock: Compared
    rows: tuple[Compared, ...]
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the wall clock is close enough."""
        error = self.wall_clock.error
        return error is not None and abs(error) <= self.tolerance

    def verdict(self) -> str:
        """Return what came of it, in a sentence."""
        one, error = self.wall_clock, self.wall_clock.error or 0.0
        return (
            f"{one.what.capitalize()}: {short_duration(one.simulated)} simulated, "
            f"{short_duration(one.real)} real, an error of {error:+z.1%}; "
            f"{'within' if self.passed else 'more than'} {self.tolerance:.0%}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "rows": [
                {
                    "where": row.where,
                    "what": row.what,
                    "real": row.real,
                    "simulated": row.simulated,
                    "error": row.error,
                }
                for row in self.rows
            ],
        }


def check(folder: RunFolder) -> Check:
    """Simulate a run as it was, with nothing drawn by chance, and compare.

    Args:
        folder: The run. If it is not finished, it is compared up to its newest version.

    Raises:
        SimulationError: Nothing can be fitted, or no version was made.
    """
    spec, fit = fitted(folder, exact=True)
    made = max(fit.measured.published, default=0)
    if made < 1:
        raise SimulationError(
            f"{fit.measured.run} made no version yet: there is nothing to compare.",
            hint="Wait for its first version; `hansa simulate --from` works without.",
        )
    events = [record.event for record in folder.records()]
    again = _simulated_events(spec)
    if not fit.measured.finished:
        events, again = list(_until(events, made)), list(_until(again, made))
    return compared(summarise(events), summarise(again))


def _simulated_events(spec: FederationSpec) -> list[Event]:
    with tempfile.TemporaryDirectory(prefix="hansa-check-") as aside:
        path = Path(aside) / "run"
        simulate(spec, folder=path)
        return [record.event for record in RunFolder(path).records()]


def _until(events: Iterable[Event], version: int) -> Iterator[Event]:
    """Yield the events until a version is published, and that one."""
    for event in events:
        yield event
        if isinstance(event, VersionPublished) and event.version == version:
            return


def compared(real: RunSummary, simulated: RunSummary) -> Check:
    """Return two summaries side by side.

    Args:
        real: The measured run.
        simulated: The same, simulated.
    """
    finished = real.outcome != "unfinished"
    wall = Compared(
        where=RUN,
        what="wall clock" if finished else "time until the newest version",
        real=real.wall_clock_s,
        simulated=simulated.wall_clock_s,
    )
    rows = [wall, *_versions(real, simulated), *_facilities(real, simulated)]
    return Check(wall_clock=wall, rows=tuple(rows))


def _versions(real: RunSummary, simulated: RunSummary) -> Iterator[Compared]:
    """Yield when versions were made; a few of them if they are many."""
    times = {one.version: one.at_s for one in simulated.versions}
    both = [one for one in real.versions if one.version and one.version in times]
    step = max(1, -(-len(both) // _MOST_VERSIONS))
    for one in both[step - 1 :: step]:
        yield Compared(
            where=RUN,
            what=f"version {one.version}",
            real=one.at_s,
            simulated=times[one.version],
        )


def _facilities(real: RunSummary, simulated: RunSummary) -> Iterator[Compared]:
    for name, was in real.facilities.items():
        is_ = simulated.facilities[name]
        pairs = {
            "queue wait": (was.queue_wait_s, is_.queue_wait_s),
            "training": (was.train_s, is_.train_s),
            "transfer": (was.transfer_s, is_.transfer_s),
            NODE_HOURS: (was.node_hours, is_.node_hours),
        }
        for what, (before, again) in pairs.items():
            yield Compared(where=name, what=what, real=before, simulated=again)
    yield Compared(
        where=RUN,
        what=NODE_HOURS,
        real=real.node_hours,
        simulated=simulated.node_hours,
    )


def check_table(made: Check) -> Table:
    """Return one row a number, with the relative error."""
    rows = [
        (
            row.where,
            row.what,
            _shown(row, row.real),
            _shown(row, row.simulated),
            NONE if row.error is None else f"{row.error:+z.1%}",
        )
        for row in made.rows
    ]
    return Table(
        title="The run and its simulation",
        columns=("where", "what", "real", "simulated", "error"),
        rows=tuple(rows),
        left=frozenset({"where", "what"}),
    )


def _shown(row: Compared, number: float) -> str:
    return hours(number) if row.what == NODE_HOURS else short_duration(number)
