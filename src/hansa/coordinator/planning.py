"""What a run would submit and move, before anything is: one plan a facility.

The script is the site agent's own, dry: asked of the facility over its gateway, or,
where the federation file names a local copy of the facility's site.yaml, rendered here
by the same code without any network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hansa.coordinator.folder import RunFolder
from hansa.coordinator.memory import (
    MemoryPlan,
    node_memory,
    plan_memory,
    shape_of,
    wants_of,
)
from hansa.coordinator.setup import (
    first_order,
    job_request,
    make_coordinator,
    make_gateway,
    order_form,
)
from hansa.coordinator.throughput import Study
from hansa.core.errors import HansaError, IntegrityError, SpecError
from hansa.core.units import format_duration
from hansa.planner.shape import ModelShape
from hansa.planner.speed import Pace, pace
from hansa.site import rpc
from hansa.site.agent import Agent
from hansa.spec.federation import FacilitySpec, FederationSpec, JobSpec
from hansa.spec.profiles import QueueFacts, load_profile
from hansa.spec.site import load_site
from hansa.store.codec import NUMBERS
from hansa.store.tensorfile import TensorFile

_WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1 + 4 / NUMBERS}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What moves, in bytes; None where the model is not there yet."""

    version: int | None = None
    update: int | None = None

    @property
    def round_trip(self) -> int | None:
        """Bytes that one facility moves in one round."""
        if self.version is None or self.update is None:
            return None
        return self.version + self.update


@dataclass(slots=True)
class FacilityPlan:
    """The first training job of one facility.

    Attributes:
        facility: Its name.
        script: The exact job script; empty where a problem kept it from being made.
        scheduler: The driver's name.
        nodes: Nodes of the job.
        ranks_per_node: Processes on each node; None: not known.
        queue: Queue or partition.
        account: Who is charged.
        time_s: Walltime.
        source: Where the script was made.
        sizes: What moves.
        mover: What moves it.
        node: `node` of its site.yaml; None: not known.
        memory: How the model fits; None: its sizes are not known here.
        pace: How long a round takes; None: nothing was measured.
        notes: What the experimenter should know.
        problems: What is wrong, each with its remedy.
    """

    facility: str
    nodes: int
    time_s: float
    queue: str | None
    account: str | None
    sizes: Sizes
    mover: str
    node: Mapping[str, Any] | None = None
    script: str = ""
    scheduler: str = ""
    ranks_per_node: int | None = None
    source: str = ""
    memory: MemoryPlan | None = None
    pace: Pace | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON data.

        ``memory_bytes`` (of the fullest rank), ``sharding`` and what belongs to them
        are null where the model's sizes are not known; ``sharding`` also where nothing
        fits.
        """
        each, memory = self.ranks_per_node, self.memory
        return {
            "script": self.script,
            "scheduler": self.scheduler,
            "nodes": self.nodes,
            "ranks": None if each is None else self.nodes * each,
            "ranks_per_node": self.ranks_per_node,
            "memory_bytes": memory.parts.total if memory else None,
            "sharding": memory.choice.sharding if memory and memory.choice else None,
            "memory": memory.to_json() if memory else None,
            "pace": asdict(self.pace) if self.pace else None,
            "transfer_bytes": self.sizes.round_trip,
            "version_bytes": self.sizes.version,
            "update_bytes": self.sizes.update,
            "queue": self.queue,
            "account": self.account,
            "time_s": self.time_s,
            "source": self.source,
            "notes": self.notes,
            "problems": [{"what": w, "hint": h} for w, h in self.problems],
        }


async def plan_all(
    spec: FederationSpec, run: str, runs: Path = Path("runs")
) -> list[FacilityPlan]:
    """Return every facility's plan; nothing is written, moved or submitted.

    Args:
        spec: The federation.
        run: Id that the run would have; it is part of paths and names.
        runs: Folder of all runs, with what was measured at facilities.

    Raises:
        SpecError: The strategy can't work with these facilities.
    """
    make_coordinator(spec)
    stored = RunFolder.of(run, runs).path / "versions" / "0"
    shape = await asyncio.to_thread(shape_of, spec, stored)
    sizes = await asyncio.to_thread(sizes_of, spec, shape)
    names = list(spec.facilities)
    plans = await asyncio.gather(*(_plan(spec, run, name, sizes) for name in names))
    for plan in plans:
        _weigh(spec, plan, shape)
        await asyncio.to_thread(_time, spec, plan, runs)
    return plans


def _weigh(spec: FederationSpec, plan: FacilityPlan, shape: ModelShape | None) -> None:
    """Add how the model fits."""
    if shape is None:
        return
    facility = spec.facilities[plan.facility]
    node = node_memory(facility, plan.node, plan.ranks_per_node)
    plan.memory = plan_memory(shape, wants_of(spec, facility), node)
    plan.notes += plan.memory.notes
    if plan.memory.problem:
        plan.problems.append(plan.memory.problem)


def _time(spec: FederationSpec, plan: FacilityPlan, runs: Path) -> None:
    """Add how long a round takes, if that was measured."""
    record = Study(spec=spec, facility=plan.facility, runs=runs).record()
    work = spec.facilities[plan.facility].work
    batch = work.options.get("batch")
    if batch is not None and record.measurements:
        plan.pace = pace(record, nodes=plan.nodes, batch=batch, steps=work.steps)


async def _plan(
    spec: FederationSpec, run: str, name: str, sizes: Sizes
) -> FacilityPlan:
    facility = spec.facilities[name]
    job = facility.job
    plan = FacilityPlan(
        facility=name,
        nodes=job.nodes,
        time_s=job.time,
        queue=job.queue,
        account=job.account,
        sizes=sizes,
        mover=facility.mover.type,
        ranks_per_node=job.ranks_per_node,
        notes=_profile_notes(facility),
    )
    try:
        if facility.site is None:
            await _ask(spec, run, plan)
        else:
            await asyncio.to_thread(_render, spec, run, plan, facility.site)
    except HansaError as error:
        plan.problems.append((error.message, error.hint or ""))
    return plan


async def _ask(spec: FederationSpec, run: str, plan: FacilityPlan) -> None:
    facility = spec.facilities[plan.facility]
    gateway = make_gateway(facility)
    plan.source = f"asked of the facility over {facility.gateway.type}"
    try:
        probe = await gateway.call(rpc.probe(), gateway.timeout)
        answer = await gateway.call(_request(spec, run, plan.facility), gateway.timeout)
    finally:
        await gateway.close()
    plan.scheduler = str(probe.get("scheduler", ""))
    node = probe.get("node")
    plan.node = node if isinstance(node, dict) else None
    _note(plan, facility, answer, plan.node.get("ranks") if plan.node else 1)


def _render(spec: FederationSpec, run: str, plan: FacilityPlan, copy: Path) -> None:
    site = load_site(copy)
    if site.name != plan.facility:
        raise SpecError(
            f"{_short(copy)} is the site file of {site.name!r}, not of "
            f"{plan.facility!r}.",
            hint=f"`facilities.{plan.facility}.site` in federation.yaml must name a "
            "copy of that facility's own site.yaml.",
        )
    plan.source = f"rendered here from {_short(copy)}; the facility's own file decides"
    agent = Agent(site, ask_batch=False)
    answer = rpc.unwrap(agent.handle(_request(spec, run, plan.facility)))
    plan.scheduler = site.scheduler.type
    plan.node = site.node.model_dump(mode="json")
    _note(plan, spec.facilities[plan.facility], answer, site.node.ranks)


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _note(
    plan: FacilityPlan, facility: FacilitySpec, answer: Mapping[str, Any], ranks: Any
) -> None:
    plan.script = str(answer.get("script", ""))
    plan.ranks_per_node = facility.job.ranks_per_node or int(ranks or 1)
    plan.notes += [str(note) for note in answer.get("notes") or ()]
    if answer.get("accepted"):
        plan.notes.append(str(answer["accepted"]))


def _request(spec: FederationSpec, run: str, name: str) -> dict[str, Any]:
    """Return the submission of the run's first training order, dry."""
    whole = order_form(spec, run, name)(first_order(spec, name))
    job = job_request(spec.facilities[name], hold=spec.start_together or 0.0)
    return rpc.submit(run, whole, 1, job, dry_run=True)


def _profile_notes(facility: FacilitySpec) -> list[str]:
    """Compare the job with what the machine's profile says."""
    if facility.profile is None:
        return []
    name, job, profile = facility.profile, facility.job, load_profile(facility.profile)
    queue = profile.queue(job.queue)
    if queue is None:
        return _unknown_queue(name, job.queue, profile.queues)
    return _queue_notes(f"The queue {queue.name} of {name}", queue, job)


def _queue_notes(where: str, queue: QueueFacts, job: JobSpec) -> list[str]:
    notes = []
    if queue.nodes is not None and job.nodes > queue.nodes:
        notes.append(f"{where} takes {queue.nodes} nodes at most, not {job.nodes}.")
    if queue.least_nodes is not None and job.nodes < queue.least_nodes:
        notes.append(
            f"{where} takes {queue.least_nodes} nodes at least, not {job.nodes}."
        )
    longest = queue.longest(job.nodes)
    if longest is not None and job.time > longest:
        most, asked = format_duration(longest), format_duration(job.time)
        size = f" to {job.nodes} nodes" if longest != queue.time else ""
        notes.append(f"{where} allows {most} at most{size}, not {asked}.")
    return notes


def _unknown_queue(profile: str, name: str | None, known: tuple[Any, ...]) -> list[str]:
    if not known or name is None:
        return []
    names = ", ".join(queue.name for queue in known)
    return [f"The profile {profile} knows no queue {name!r}; it knows {names}."]


def sizes_of(spec: FederationSpec, shape: ModelShape | None = None) -> Sizes:
    """Return what a version and an update weigh, as far as that is known here.

    Args:
        spec: The federation.
        shape: The model's sizes; None: the weights are looked for on this machine.
    """
    numbers = _stored_numbers(spec) if shape is None else shape.trained
    if numbers is None:
        return Sizes()
    return Sizes(
        round(numbers * _WIDTHS[spec.model.dtype]),
        round(numbers * _WIDTHS[spec.update.dtype]),
    )


def _stored_numbers(spec: FederationSpec) -> int | None:
    folder = Path(spec.model.source).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or spec.model.options.get("lora") is not None:
        return None
    try:
        return sum(map(_numbers, files))
    except IntegrityError:
        return None


def _numbers(path: Path) -> int:
    with TensorFile(path) as file:
        return sum(info.elements for info in file.tensors.values())
