"""What was fitted, from how much, and what nobody should believe too firmly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from hansa.core.units import format_duration, format_size, short_duration
from hansa.report.tables import Table
from hansa.simulator.fit.estimate import MANY, NODES_EXPONENT, WORDS, Estimate
from hansa.simulator.fit.measure import Measured, Observed
from hansa.spec.federation import FederationSpec
from hansa.spec.simulation import FacilitySimulation, LognormalQueue

FEW = 3
"""Fewer measurements of a kind are pointed out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What came of a run's journal.

    Attributes:
        measured: What the journal tells.
        facilities: How each facility is simulated, as fitted.
        notes: What to know before believing it, in sentences.
    """

    measured: Measured
    facilities: Mapping[str, FacilitySimulation]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "run": self.measured.run,
            "finished": self.measured.finished,
            "wall_clock_s": self.measured.end,
            "versions": made(self.measured),
            "notes": list(self.notes),
            "facilities": {
                name: {
                    "waits": len(observed.waits),
                    "updates": len(observed.speeds),
                    "transfers": len(observed.transfers),
                    "simulation": self.facilities[name].model_dump(mode="json"),
                }
                for name, observed in self.measured.facilities.items()
            },
        }


def made(measured: Measured) -> int:
    """Return how many versions the run made, version 0 not counted."""
    return max(measured.published, default=0)


def fit_table(fit: Fit) -> Table:
    """Return one row a facility: what it is like, and how often that was seen."""
    rows = [
        _row(name, observed, fit.facilities[name])
        for name, observed in fit.measured.facilities.items()
    ]
    return Table(
        title=f"Fitted from {fit.measured.run}",
        columns=(
            "facility", "waits", "median", "queue", "updates", "a step", "spread",
            "start-up", "handover", "notice", "transfers", "latency", "bandwidth",
        ),
        rows=tuple(rows),
        left=frozenset({"facility", "queue"}),
    )  # fmt: skip


def _row(name: str, observed: Observed, how: FacilitySimulation) -> tuple[str, ...]:
    speed, queue = how.speed, how.queue
    if isinstance(queue, LognormalQueue):
        law, middle = f"lognormal, sigma {queue.sigma:.2f}", queue.median
    else:
        law, middle = "replayed", median(getattr(queue, "waits", None) or (0.0,))
    return (
        name,
        str(len(observed.waits)),
        short_duration(middle),
        law,
        str(len(observed.speeds)),
        f"{speed.seconds_per_step:.3g} s",
        f"{speed.noise:.0%}",
        short_duration(speed.startup),
        short_duration(speed.handover),
        short_duration(how.notice),
        str(len(observed.transfers)),
        f"{how.link.latency:.2g} s",
        f"{format_size(how.link.bandwidth)}/s",
    )


def notes(
    measured: Measured,
    estimates: Mapping[str, Estimate],
    borrowed: Mapping[str, tuple[str, ...]],
) -> Iterator[str]:
    """Yield what was not measured, or not often enough.

    Args:
        measured: What the journal tells.
        estimates: The completed estimates.
        borrowed: What each facility has from the others.
    """
    if not measured.finished:
        yield (
            f"{measured.run} did not come to its end: this is what its first "
            f"{short_duration(measured.end)} show."
        )
    if measured.silent:
        yield (
            f"It was taken up again after {short_duration(measured.silent)} in which "
            "no coordinator ran; no simulation has such a pause."
        )
    yield from _few(measured)
    for name, observed in measured.facilities.items():
        yield from _gaps(name, observed, estimates[name], borrowed[name])
        yield from _troubles(name, observed)
    yield from _assumed(estimates.values())


def _few(measured: Measured) -> Iterator[str]:
    found = []
    for name, observed in measured.facilities.items():
        counts = {"waits": len(observed.waits), "updates": len(observed.speeds)}
        few = [f"{n} {what}" for what, n in counts.items() if n < FEW]
        if few:
            found.append(f"{name} ({', '.join(few)})")
    if found:
        yield f"Few measurements: {_listed(found)}."


def _gaps(
    name: str, observed: Observed, estimate: Estimate, lent: tuple[str, ...]
) -> Iterator[str]:
    if not observed.started:
        waited = estimate.waited
        least = f" (one waited {short_duration(waited)})" if waited else ""
        yield f"{name}: no job of it ever started{least}."
    if lent:
        yield (
            f"{name}: {_listed([WORDS[part] for part in lent])} "
            f"{'is' if len(lent) == 1 else 'are'} the median of the others'."
        )
    never = len(observed.waits) - observed.started
    if never and observed.started:
        yield (
            f"{name}: {never} of {len(observed.waits)} jobs never started; how long "
            "they had waited by then counts as their wait."
        )


def _troubles(name: str, observed: Observed) -> Iterator[str]:
    hours = observed.run_s / 3600
    for times, what in (
        (observed.preemptions, "preemptions"),
        (observed.node_failures, "failed nodes"),
    ):
        if times:
            yield (
                f"{name}: {times} {what} in {hours:.2g} hours of jobs; they come "
                "again at that rate, at other times."
            )
    if observed.failures:
        yield (
            f"{name}: {observed.failures} orders ended without a result; what is not "
            "a lost node or an outage does not come again."
        )
    if observed.outages:
        yield (
            f"{name}: it was lost {len(observed.outages)} times, and is again at the "
            "same times; running jobs are lost with it."
        )


def _assumed(estimates: Iterable[Estimate]) -> Iterator[str]:
    """Yield what nobody measured: what one did, the others have from it."""
    one = next(iter(estimates))
    unknown = [w for part, w in WORDS.items() if getattr(one, part) in (None, ())]
    if unknown:
        yield f"Measured nowhere, so assumed: {_listed(unknown)}."
    yield (
        f"{MANY} waits or more at a facility become a lognormal law; fewer are "
        "replayed one after the other. How waits depend on nodes, walltime and time of "
        "day is not known from one run."
    )


def changes(plan: FederationSpec, spec: FederationSpec) -> Iterator[str]:
    """Yield what an override asks for that the run did not show.

    Args:
        plan: The plan of the run.
        spec: What is simulated.
    """
    for name, facility in spec.facilities.items():
        before, now = plan.facilities[name].job, facility.job
        if now.nodes != before.nodes:
            how = facility.simulation
            power = how.speed.nodes_exponent if how else NODES_EXPONENT
            yield (
                f"{name}: {now.nodes} nodes instead of {before.nodes}: speed is taken "
                f"to grow with nodes^{power:g} (`simulation.speed.nodes_exponent`), "
                "the waits to stay as they are."
            )
        if now.time != before.time:
            yield (
                f"{name}: {format_duration(now.time)} of walltime instead of "
                f"{format_duration(before.time)}: the waits are taken to stay as they "
                "are."
            )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
