"""From a federation file to a simulation: every part, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hansa.coordinator.core import Coordinator
from hansa.coordinator.setup import make_coordinator
from hansa.core.errors import SpecError
from hansa.core.events import Event, RunStarted, VersionPublished
from hansa.core.units import format_duration
from hansa.simulator.facility import SimulatedFacility
from hansa.simulator.heap import Heap
from hansa.simulator.machine import Machine
from hansa.simulator.memory import MemoryStore
from hansa.simulator.network import Network
from hansa.simulator.queues import make_queue
from hansa.simulator.runtime import VirtualRuntime
from hansa.simulator.training import make_training
from hansa.simulator.weather import Weather
from hansa.simulator.world import World
from hansa.spec.federation import FacilitySpec, FederationSpec, plan_hash
from hansa.spec.presets import simulation_of
from hansa.spec.simulation import FacilitySimulation, SimulationSpec


@dataclass(frozen=True, slots=True)
class Simulation:
    """One federation that can be run in virtual time, once.

    Attributes:
        core: The coordinator.
        world: What its facilities share.
        facilities: They, by name.
        runtime: Carries the core's commands out.
        opening: The events that begin the run.
    """

    core: Coordinator
    world: World
    facilities: dict[str, SimulatedFacility]
    runtime: VirtualRuntime
    opening: tuple[Event, ...]

    def run(self) -> Coordinator:
        """Carry it to its end and return the core."""
        self.runtime.run(self.world, self.facilities, self.opening)
        return self.core

    def remarks(self) -> tuple[str, ...]:
        """Return what a person should know of the facilities' data."""
        return tuple(
            f"{name}: {sentence}"
            for name, facility in self.facilities.items()
            for sentence in facility.queue.remarks
        )

    def node_hours(self) -> float:
        """Return what all facilities have used up to now."""
        return sum(one.accounts.node_hours() for one in self.facilities.values())


def prepare(
    spec: FederationSpec,
    seed: int,
    *,
    run: str = "",
    record: Callable[[Event, Coordinator], None] | None = None,
    watchers: Iterable[Callable[[Event], None]] = (),
) -> Simulation:
    """Return a simulation of a federation.

    Args:
        spec: The federation.
        seed: Seed of everything that is drawn.
        run: Id of the run; its name if empty.
        record: Takes each event, before the core does.
        watchers: Told of every event, after the core.

    Raises:
        SpecError: A job can't ever run where it is meant to.
        SimulationError: A queue, a machine or a workload can't be as described.
    """
    how = _how(spec)
    parts = {name: simulated(one) for name, one in spec.facilities.items()}
    for name, facility in spec.facilities.items():
        _check_job(name, facility, parts[name])
    core = make_coordinator(spec)
    runtime = VirtualRuntime(
        core,
        record,
        watchers,
        aggregate_s=how.aggregate,
        at_server=how.evaluation == "server",
    )
    world = _world(spec, seed, core, runtime, parts)
    facilities = {
        name: _facility(spec, name, seed, world, part) for name, part in parts.items()
    }
    opening = _opening(spec, run or spec.name, seed, world)
    return Simulation(core, world, facilities, runtime, opening)


def _world(
    spec: FederationSpec,
    seed: int,
    core: Coordinator,
    runtime: VirtualRuntime,
    parts: Mapping[str, FacilitySimulation],
) -> World:
    how, heap = _how(spec), Heap()
    training = make_training(spec, seed)
    lines = {name: part.link for name, part in parts.items()}
    return World(
        heap=heap,
        core=core,
        store=MemoryStore(training.initial()),
        training=training,
        network=Network(heap, lines, how.server_bandwidth),
        emit=runtime.emit,
        late_binding=how.binding == "start",
        hold=spec.start_together or 0.0,
        retries=spec.retries,
        patience=spec.patience,
    )


def _facility(
    spec: FederationSpec, name: str, seed: int, world: World, part: FacilitySimulation
) -> SimulatedFacility:
    hour = _how(spec).start_hour
    return SimulatedFacility(
        name,
        spec.facilities[name],
        part,
        world,
        make_queue(part.queue, world.heap, facility=name, seed=seed, start_hour=hour),
        Machine(part.speed, name, seed, hour),
        Weather(part.failures, name, seed),
    )


def _how(spec: FederationSpec) -> SimulationSpec:
    return spec.simulation or SimulationSpec.model_validate({})


def simulated(facility: FacilitySpec) -> FacilitySimulation:
    """Return how a facility is simulated; its profile's preset if it does not say."""
    return simulation_of(facility.simulation, facility.profile)


def _check_job(name: str, facility: FacilitySpec, part: FacilitySimulation) -> None:
    """Refuse a job that no queue there would ever start."""
    job = facility.job
    if part.most_nodes is not None and job.nodes > part.most_nodes:
        raise SpecError(
            f"The jobs of {name} ask for {job.nodes} nodes; its queue allows "
            f"{part.most_nodes}.",
            hint=f"Lower facilities.{name}.job.nodes.",
        )
    if part.longest is not None and job.time > part.longest:
        raise SpecError(
            f"The jobs of {name} ask for {format_duration(job.time)}; its queue allows "
            f"{format_duration(part.longest)}.",
            hint=f"Lower facilities.{name}.job.time.",
        )


def _opening(
    spec: FederationSpec, run: str, seed: int, world: World
) -> tuple[Event, ...]:
    return (
        RunStarted(
            at=0.0,
            run=run,
            plan=plan_hash(spec),
            seed=seed,
            facilities=tuple(spec.facilities),
            started=0.0,
        ),
        VersionPublished(
            at=0.0,
            version=0,
            sha256=world.store.sha256(0),
            bytes=world.training.version_bytes,
            seconds=0.0,
            terms=(),
        ),
    )
