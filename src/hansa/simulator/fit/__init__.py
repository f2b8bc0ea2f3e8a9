"""From a real run to a simulated one: what would another plan have come to?

`measure` reads the journal, `estimate` makes the keys of `simulation` of it, `plan`
puts them into the run's own plan, `describe` says how far they can be trusted, and
`check` simulates the run as it was and compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from hansa.coordinator.folder import RunFolder
from hansa.coordinator.throughput import Study
from hansa.core.errors import SimulationError
from hansa.simulator.fit.describe import Fit, changes, made, notes
from hansa.simulator.fit.estimate import (
    NODES_EXPONENT,
    Asked,
    completed,
    estimate,
    section,
)
from hansa.simulator.fit.measure import Measured, measure
from hansa.simulator.fit.plan import changed, checked, limited, planned
from hansa.spec.federation import FederationSpec
from hansa.spec.simulation import NoTraining

__all__ = ["Fit", "fitted"]


def fitted(
    folder: RunFolder, overrides: Iterable[str] = (), *, exact: bool = False
) -> tuple[FederationSpec, Fit]:
    """Return a federation that behaves as a run's facilities did.

    Nothing is trained in it (`simulation.training` chooses otherwise), versions are
    measured by jobs as in the run, and it ends as the plan says; only a target on the
    loss is replaced by the number of versions that the run made. How speed grows with
    nodes is what `hansa bench throughput` has measured of the same workload beside the
    run, if it has.

    Args:
        folder: The run, finished or not.
        overrides: What is to be different: ``strategy.name=fedbuff``,
            ``defaults.linger=10m``; `defaults` means all facilities.
        exact: Draw nothing: measured waits one after the other, however many they are,
            and the mean speed.

    Returns:
        The federation, and what it rests on.

    Raises:
        SimulationError: No job ever started, or no update came.
        JournalError: The journal is damaged, or does not begin with a run.
        SpecError: An override makes no sense.
    """
    plan = folder.spec()
    lingering = {
        name: one.linger > 0 or one.queue_ahead > 0
        for name, one in plan.facilities.items()
    }
    measured = measure((record.event for record in folder.records()), lingering)
    _refuse_too_little(measured)
    own = {name: estimate(one) for name, one in measured.facilities.items()}
    estimates, borrowed = completed(own)
    sections = {
        name: section(
            estimates[name],
            measured.facilities[name],
            Asked(
                nodes=one.job.nodes,
                time=one.job.time,
                patience=plan.patience,
                nodes_exponent=_nodes_exponent(plan, name, folder),
            ),
            exact=exact,
        )
        for name, one in plan.facilities.items()
    }
    doc = planned(plan, _shared(measured), sections, name=f"the fit of {measured.run}")
    doc, without_target = limited(changed(doc, overrides), made(measured))
    spec = checked(doc)
    said = [*notes(measured, estimates, borrowed), *changes(plan, spec)]
    if without_target:
        said.append(
            f"Nothing is trained, so no target on the loss can be reached: it ends "
            f"after {spec.stop.rounds} versions, as many as the run made."
        )
    return spec, Fit(measured=measured, facilities=sections, notes=tuple(said))


def _nodes_exponent(plan: FederationSpec, name: str, folder: RunFolder) -> float:
    """Return how speed grows with nodes, as it was measured beside the run."""
    record = Study(spec=plan, facility=name, runs=folder.path.parent).record()
    return record.exponent if len(record.nodes) > 1 else NODES_EXPONENT


def _refuse_too_little(measured: Measured) -> None:
    facilities = measured.facilities.values()
    if not any(one.started for one in facilities):
        raise SimulationError(
            f"No job of {measured.run} ever started: nothing is known of its queues.",
            hint="Wait until one has run, or describe the facilities in a federation "
            "file (`hansa simulate FILE`).",
        )
    if not any(one.speeds for one in facilities):
        raise SimulationError(
            f"No update of {measured.run} ever came: nothing is known of the speed of "
            "its facilities.",
            hint="Wait until one has come, or describe the facilities in a federation "
            "file (`hansa simulate FILE`).",
        )


def _shared(measured: Measured) -> dict[str, Any]:
    """Return the federation's own `simulation`."""
    training: dict[str, Any] = {"type": "none"}
    if measured.version_bytes:
        training["bytes"] = round(median(measured.version_bytes))
    if measured.update_bytes:
        training["update_bytes"] = round(median(measured.update_bytes))
    seconds = median(measured.aggregations) if measured.aggregations else None
    where = "server" if measured.at_server else "facility"
    shared: dict[str, Any] = {"evaluation": where, "binding": "start"}
    shared["training"] = NoTraining.model_validate(training).model_dump(mode="json")
    if seconds is not None:
        shared["aggregate"] = float(f"{seconds:.6g}")
    return shared
