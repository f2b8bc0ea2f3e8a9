"""What ``sharding: auto`` becomes in a job."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hansa.core.errors import SpecError
from hansa.planner.choice import Machine, Misfit, choose
from hansa.planner.shape import Adapters, ModelShape, from_config
from hansa.worker.engine.together import largest
from hansa.worker.llm_options import (
    CausalLMModelOptions,
    CausalLMWorkOptions,
    sharding_misfit,
)
from hansa.worker.team import Team

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a facility trains: what `work` says, with "auto" decided.

    Attributes:
        sharding: The back end.
        micro_batch: Examples of one pass.
        activation_checkpointing: Whether layers are computed twice.
        cpu_offload: Whether weights and optimizer stay in the node's memory.
    """

    sharding: str
    micro_batch: int
    activation_checkpointing: bool
    cpu_offload: bool


def way(
    config: Mapping[str, Any],
    options: CausalLMModelOptions,
    work: CausalLMWorkOptions,
    precision: str,
    team: Team,
    device: torch.device,
    *,
    own: bool,
) -> Way:
    """Return how to train; the planner decides what is "auto".

    Args:
        config: The model's Hugging Face config.
        options: Says if there are adapters.
        work: What the facility chooses.
        precision: dtype of the arithmetic, or "mixed".
        team: The ranks.
        device: This rank's.
        own: Whether Hansa's own decoder computes the model.

    Raises:
        SpecError: No way fits the memory, or what is asked for not the ranks.
    """
    misfit = sharding_misfit(work.sharding, team.world, cpu_offload=work.cpu_offload)
    if misfit is not None:
        raise SpecError(misfit[0], hint=misfit[1])
    asked = Way(
        sharding=work.sharding,
        micro_batch=work.micro_batch,
        activation_checkpointing=work.activation_checkpointing,
        cpu_offload=work.cpu_offload,
    )
    if work.sharding != "auto":
        return asked
    shape = _shape(config, options, own=own)
    if shape is None:
        return replace(asked, sharding="ddp" if team.world > 1 else "none")
    # Nodes are seldom quite alike, and all ranks must choose the same.
    memory, node = (int(-largest(-size, team)) for size in memories(team, device))
    machine = Machine(
        device_bytes=memory,
        ranks=team.world,
        ranks_per_node=team.ranks_per_node,
        host=device.type == "cpu",
        host_bytes=node,
    )
    # `precision` is decided already, by the order's dtype where `work` is silent.
    found = choose(shape, work.wants(precision), machine)
    if isinstance(found, Misfit):
        raise SpecError(
            f"The model does not fit the memory here: {found.why}",
            hint=found.advice,
        )
    log.info("Sharding: %s. %s", found.sharding, found.why)
    return Way(
        sharding=found.sharding,
        micro_batch=found.micro_batch,
        activation_checkpointing=found.activation_checkpointing,
        cpu_offload=found.cpu_offload,
    )


def _shape(
    config: Mapping[str, Any], options: CausalLMModelOptions, *, own: bool
) -> ModelShape | None:
    lora = options.lora
    adapters = Adapters(rank=lora.rank, targets=lora.targets) if lora else None
    try:
        return from_config(config, own=own).with_adapters(adapters)
    except SpecError as error:
        log.warning("How much memory it takes is not known: %s", error)
        return None


def memories(team: Team, device: torch.device) -> tuple[int, int]:
    """Return the bytes that a rank's device has, and those of its node's memory.

    Of a processor each rank has its part of the node's memory.
    """
    node = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cpu":
        return node // team.ranks_per_node, node
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(properties.total_memory), node
