"""What one simulated run, or the same with several seeds, came to, for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hansa.core.units import short_duration
from hansa.journal import Record
from hansa.report.model import FacilitySummary, finite
from hansa.report.summary import summarise
from hansa.report.tables import NONE, Table, hours, loss
from hansa.simulator.compare.score import score
from hansa.simulator.compare.statistics import (
    ENOUGH,
    censored,
    estimate,
    resamples,
)
from hansa.simulator.compare.study import checked_target, training_of
from hansa.simulator.compare.tables import with_interval
from hansa.simulator.outcome import Outcome
from hansa.spec.federation import FederationSpec

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One or several runs of a federation.

    Attributes:
        outcomes: The runs, by seed.
        target: Loss whose time was measured; None: none.
        training: What stood for the training: ``surrogate``, ``real`` or ``none``.
        facilities: What each did and cost in the first run, from its journal.
    """

    outcomes: tuple[Outcome, ...]
    target: float | None
    training: str
    facilities: Mapping[str, FacilitySummary]

    @property
    def outcome(self) -> Outcome:
        """The first run."""
        return self.outcomes[0]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON data: the first run in full, the others in a line each."""
        first = self.outcome
        return {
            **_numbers(first),
            "strategy": first.strategy,
            "target": self.target,
            "training": self.training,
            "remarks": list(first.remarks),
            "facilities": {
                name: {
                    "updates_applied": first.rounds.get(name, 0),
                    "updates_late": first.late.get(name, 0),
                    "jobs": one.jobs,
                    "queue_wait_median_s": _wait(first, name),
                    "node_hours": one.node_hours,
                }
                for name, one in self.facilities.items()
            },
            "staleness": {str(age): n for age, n in first.staleness.items()},
            "versions_measured": [
                {
                    "version": one.version,
                    "at_s": one.at_s,
                    "loss": one.loss if finite(one.loss) else None,
                    "node_hours": one.node_hours,
                }
                for one in first.losses
            ],
            "runs": [_numbers(one) for one in self.outcomes],
        }


def _numbers(one: Outcome) -> dict[str, object]:
    first = one.losses[0].loss if one.losses else None
    return {
        "seed": one.seed,
        "outcome": one.outcome,
        "reason": one.reason,
        "wall_clock_s": one.wall_clock_s,
        "node_hours": one.node_hours,
        "versions": one.versions,
        "events": one.events,
        "first_loss": first if finite(first) else None,
        "final_loss": one.final_loss if finite(one.final_loss) else None,
        "time_to_target_s": one.target_s,
        "node_hours_to_target": one.target_node_hours,
    }


def _wait(one: Outcome, facility: str) -> float | None:
    waits = one.queue_wait_s.get(facility, ())
    return median(waits) if waits else None


def account(
    outcomes: Sequence[Outcome],
    spec: FederationSpec,
    records: Iterable[Record],
    target: float | None = None,
) -> Account:
    """Return what runs came to.

    Args:
        outcomes: The runs; at least one.
        spec: The federation.
        records: The journal of the first run.
        target: Loss whose time was measured; None: that of `stop.target`.
    """
    summary = summarise(record.event for record in records)
    return Account(
        outcomes=tuple(outcomes),
        target=checked_target(spec, target),
        training=training_of(spec),
        facilities=summary.facilities,
    )


def sentences(told: Account) -> list[str]:
    """Return what the first run came to, in a few lines."""
    one = told.outcome
    found = [
        f"{one.strategy}, seed {one.seed}: {one.outcome}. {one.reason}",
        f"  virtual time  {short_duration(one.wall_clock_s)}",
        f"  node-hours    {hours(one.node_hours)}",
        f"  versions      {one.versions}",
    ]
    if finite(one.final_loss):
        whose = " (of a surrogate problem)" if told.training == "surrogate" else ""
        found.append(
            f"  test loss     {loss(one.losses[0].loss)} at first, "
            f"{loss(one.final_loss)} at last{whose}"
        )
    if told.target is not None and finite(one.final_loss):
        found.append(f"  below {told.target:<7g} {_target(one)}")
    return found


def _target(one: Outcome) -> str:
    if one.target_s is None:
        low = min((each.loss for each in one.losses), default=None)
        return f"never; the lowest was {loss(low)}"
    used = hours(one.target_node_hours or 0.0)
    return f"after {short_duration(one.target_s)} and {used} node-hours"


def facilities_table(told: Account) -> Table:
    """Return one row a facility, of the first run."""
    one = told.outcome
    rows = tuple(
        (
            name,
            str(one.rounds.get(name, 0)),
            str(one.late.get(name, 0)),
            str(facility.failures),
            str(facility.jobs),
            NONE if (wait := _wait(one, name)) is None else short_duration(wait),
            hours(facility.node_hours),
            hours(facility.node_hours_idle),
        )
        for name, facility in told.facilities.items()
    )
    return Table(
        title="Facilities",
        columns=(
            "facility", "updates applied", "late", "failed", "batch jobs",
            "queue wait, median", "node-hours", "idle",
        ),
        rows=rows,
        left=frozenset({"facility"}),
    )  # fmt: skip


def seeds_table(told: Account) -> Table:
    """Return medians over the seeds with 95% bootstrap intervals.

    Those of a few seeds span all runs, and are called so.
    """
    runs = [score(one) for one in told.outcomes]
    chosen = resamples("seeds", len(runs))
    spread = "range" if len(runs) < ENOUGH else "95% interval"
    rows = []
    for name, values, text in (
        ("virtual time", [one.wall_clock_s for one in runs], short_duration),
        ("node-hours", [one.node_hours for one in runs], hours),
        ("final loss", [one.final_loss for one in runs], loss),
        ("time to target", [one.target_s for one in runs], short_duration),
        ("node-hours to target", [one.target_node_hours for one in runs], hours),
    ):
        known = sum(x is not None and math.isfinite(x) for x in values)
        found = estimate(censored(values), chosen)
        rows.append((name, with_interval(found, text), f"{known} of {len(runs)}"))
    return Table(
        title=f"{len(runs)} seeds",
        columns=("measure", f"median ({spread})", "runs that have it"),
        rows=tuple(rows),
        left=frozenset({"measure"}),
    )


def sparkline(one: Outcome) -> str:
    """Return the loss over time as a line of bars; empty if there is nothing to see.

    The scale is logarithmic where the losses span more than a factor of ten.
    """
    measured = [m for m in one.losses if math.isfinite(m.loss)]
    if len(measured) < 2 or one.wall_clock_s <= 0:
        return ""
    found, at = [], 0
    for column in range(WIDTH):
        time = one.wall_clock_s * (column + 0.5) / WIDTH
        while at + 1 < len(measured) and measured[at + 1].at_s <= time:
            at += 1
        found.append(measured[at].loss)
    low, high = min(found), max(found)
    wide = low > 0 and high > 10 * low
    scaled = [math.log(x) if wide else x for x in found]
    bottom, span = min(scaled), (max(scaled) - min(scaled)) or 1.0
    top = len(BARS) - 1
    bars = "".join(BARS[round(top * (x - bottom) / span)] for x in scaled)
    scale = ", logarithmic" if wide else ""
    return f"  {bars}  loss {loss(high)} to {loss(low)}{scale}"
