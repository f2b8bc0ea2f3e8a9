"""Whether a federation's model fits its facilities, and how it is best trained there.

Asked before anything is submitted, of what is known here: the plan, the model's
config, what site.yaml and the machine's profile say of a node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.coordinator.findings import FacilityCheck
from hansa.core import plugins
from hansa.core.errors import SpecError
from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING
from hansa.core.units import format_size
from hansa.planner.choice import Choice, Machine, Misfit, Wants, choose
from hansa.planner.known import known
from hansa.planner.memory import Parts
from hansa.planner.shape import Adapters, ModelShape, from_config, tiny_llama
from hansa.spec.federation import FacilitySpec, FederationSpec
from hansa.spec.profiles import load_profile
from hansa.worker.llm_options import length_misfit, sharding_misfit

TRAINER = "causal-lm"
"""The trainer whose memory is foretold; others are left alone."""
SMALL = 4_000_000_000
"""Bytes that a rank may take anywhere, by this file."""
NOT_COMPARED = "The memory of a rank is not known here, so it was not compared."
HOW_TO_TELL = "Name `node.gpu_memory` in site.yaml, or `profile` in federation.yaml."
_TINY = "tiny-llama"
_SMOLLM2 = "smollm2"
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeMemory:
    """What one rank of a job may take.

    Attributes:
        nodes: Nodes of the job.
        ranks_per_node: Processes on each.
        host: Whether they train on the processor.
        device_bytes: Memory of each rank's device, or its part of the node's; None: not
            known.
        host_bytes: Memory of a node; None: not known.
    """

    nodes: int
    ranks_per_node: int
    host: bool
    device_bytes: int | None
    host_bytes: int | None

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """How a model is trained at a facility, or why it can't be.

    Attributes:
        shape: The model.
        wants: What `work` asks for.
        node: What there is.
        found: What fits, or that nothing does; where the device's memory is not known,
            what moves least, whatever it takes.
    """

    shape: ModelShape
    wants: Wants
    node: NodeMemory
    found: Choice | Misfit

    @property
    def parts(self) -> Parts:
        """The memory of the fullest rank."""
        return self.found.parts

    @property
    def choice(self) -> Choice | None:
        """What fits; None: nothing does."""
        return self.found if isinstance(self.found, Choice) else None

    @property
    def problem(self) -> tuple[str, str] | None:
        """What the job would refuse, and what would do; None: it fits."""
        wants = self.wants
        misfit = length_misfit(
            wants.sequence_length, self.shape.positions
        ) or sharding_misfit(
            wants.sharding, self.node.ranks, cpu_offload=wants.cpu_offload
        )
        if misfit is not None or isinstance(self.found, Choice):
            return misfit
        name = f"{format_count(self.shape.parameters)} parameters do not fit. "
        return name + self.found.why, self.found.advice

    @property
    def notes(self) -> list[str]:
        """What the experimenter should know beside."""
        ranks, batch = self.node.ranks, self.wants.batch
        notes = []
        if batch < ranks:
            notes.append(
                f"A step has {batch} examples and there are {ranks} ranks: "
                f"{ranks - batch} of them have nothing to do. Raise work.batch."
            )
        if self.node.device_bytes is None and self.parts.total > SMALL:
            notes.append(f"{NOT_COMPARED} {HOW_TO_TELL}")
        return notes

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON data."""
        choice = self.choice
        return {
            "fits": None if self.node.device_bytes is None else choice is not None,
            "parameters": self.shape.parameters,
            "trained": self.shape.trained,
            "device_bytes": self.node.device_bytes,
            "device": "processor" if self.node.host else "gpu",
            "parts": self.parts.to_json(),
            "total_bytes": self.parts.total,
            "sharding": choice.sharding if choice else None,
            "micro_batch": choice.micro_batch if choice else None,
            "accumulation": choice.accumulation if choice else None,
            "activation_checkpointing": (
                choice.activation_checkpointing if choice else None
            ),
            "cpu_offload": choice.cpu_offload if choice else None,
            "why": self.found.why,
            "would_fit": [] if isinstance(self.found, Choice) else self.found.remedies,
        }


def format_count(number: int) -> str:
    """Return a number of parameters for people: ``6.7 G``, ``135 M``."""
    return format_size(number).removesuffix("B").rstrip()


def shape_of(spec: FederationSpec, stored: Path | None = None) -> ModelShape | None:
    """Return the model's sizes; None where they are not known here.

    They are read from the first version's config, if there is one; else from the
    source's folder, if it lies on this machine; else they may be those of a model that
    everybody knows by name.

    Args:
        spec: The federation.
        stored: Folder of the run's version 0.
    """
    if spec.model.trainer != TRAINER:
        return None
    try:
        shape = _base_shape(spec, stored)
        return shape.with_adapters(_adapters(spec)) if shape else None
    except SpecError:
        return None  # a family that is not known, or layers that the job will refuse


def _base_shape(spec: FederationSpec, stored: Path | None) -> ModelShape | None:
    source = spec.model.source
    if source == _TINY:
        options = _options(spec)
        return tiny_llama(
            hidden=options.hidden,
            layers=options.layers,
            heads=options.heads,
            intermediate=options.intermediate,
            vocabulary=options.vocabulary,
            positions=options.positions,
        )
    folders = [stored] if stored else []
    for folder in (*folders, Path(source).expanduser()):
        if (config := read_config(folder / _CONFIG)) is not None:
            return from_config(config, own=source == _SMOLLM2)
    return known(source)


def read_config(path: Path) -> dict[str, Any] | None:
    """Return a model's config; None where there is none that can be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _options(spec: FederationSpec) -> Any:
    plugin = plugins.find(plugins.TRAINERS, spec.model.trainer)
    return plugin.model_options.model_validate(spec.model.options)


def _adapters(spec: FederationSpec) -> Adapters | None:
    lora = _options(spec).lora
    return Adapters(rank=lora.rank, targets=tuple(lora.targets)) if lora else None


def wants_of(spec: FederationSpec, facility: FacilitySpec) -> Wants:
    """Return what a facility's `work` asks of the planner."""
    plugin = plugins.find(plugins.TRAINERS, spec.model.trainer)
    work = plugin.work_options.model_validate(facility.work.options)
    wants: Wants = work.wants(spec.model.dtype)
    return wants


def node_memory(
    facility: FacilitySpec, node: Mapping[str, Any] | None, ranks_per_node: int | None
) -> NodeMemory:
    """Return what a rank may take, by site.yaml and, where that is silent, the profile.

    Args:
        facility: The facility in the federation's file.
        node: `node` of its site.yaml; None: not known.
        ranks_per_node: Processes on a node; None: as site.yaml or the profile says.
    """
    facts = load_profile(facility.profile).node if facility.profile else None
    said = node or {}
    gpus = int(said.get("gpus") or (facts.visible if facts else 0))
    usual = said.get("ranks") or (facts.ranks if facts else 1)
    memory = said.get("gpu_memory") or (facts.gpu_memory if facts else None)
    return _node(
        nodes=facility.job.nodes,
        each=facility.job.ranks_per_node or ranks_per_node or int(usual),
        gpus=gpus,
        gpu_memory=int(memory) if memory else None,
        host_bytes=facts.memory if facts else None,
    )


def profile_memory(name: str, nodes: int) -> NodeMemory:
    """Return what a rank may take on so many nodes of a known machine.

    Raises:
        SpecError: There is no such profile.
    """
    facts = load_profile(name).node
    return _node(
        nodes=nodes,
        each=facts.ranks,
        gpus=facts.visible,
        gpu_memory=facts.gpu_memory,
        host_bytes=facts.memory,
    )


def _node(
    *, nodes: int, each: int, gpus: int, gpu_memory: int | None, host_bytes: int | None
) -> NodeMemory:
    share = host_bytes // each if host_bytes else None
    return NodeMemory(
        nodes=nodes,
        ranks_per_node=each,
        host=gpus == 0,
        device_bytes=gpu_memory if gpus else share,
        host_bytes=host_bytes,
    )


def plan_memory(shape: ModelShape, wants: Wants, node: NodeMemory) -> MemoryPlan:
    """Return how a model is trained on some nodes."""
    enough = 1 << 60  # where the memory is not known, whatever moves least
    machine = Machine(
        device_bytes=enough if node.device_bytes is None else node.device_bytes,
        ranks=node.ranks,
        ranks_per_node=node.ranks_per_node,
        host=node.host,
        host_bytes=node.host_bytes,
    )
    found = choose(shape, wants, machine)
    return MemoryPlan(shape=shape, wants=wants, node=node, found=found)


def memory_finding(
    check: FacilityCheck,
    spec: FederationSpec,
    facility: FacilitySpec,
    shape: ModelShape | None,
) -> None:
    """Add whether the model fits; other trainers than `TRAINER` are left alone.

    Args:
        check: What was found up to now, with what the facility said of its nodes.
        spec: The federation.
        facility: The facility in it.
        shape: The model's sizes; None: not known here.
    """
    if spec.model.trainer != TRAINER:
        return
    if shape is None:
        check.add("memory", UNKNOWN, "the model's sizes are not known here")
        return
    said = check.probe.get("node")
    node = node_memory(facility, said if isinstance(said, Mapping) else None, None)
    plan = plan_memory(shape, wants_of(spec, facility), node)
    takes = f"{format_size(plan.parts.total)} a rank"
    if plan.problem:
        check.add("memory", PROBLEM, *plan.problem)
    elif node.device_bytes is not None:
        way = plan.choice.sharding if plan.choice else ""
        check.add(
            "memory", OK, f"{takes} of {format_size(node.device_bytes)} with {way}"
        )
    elif plan.parts.total <= SMALL:
        check.add("memory", OK, takes)
    else:
        check.add("memory", WARNING, f"{takes}; {NOT_COMPARED}", HOW_TO_TELL)
