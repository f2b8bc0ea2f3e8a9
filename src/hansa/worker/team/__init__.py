"""The ranks of a job that train one model together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """Who this process is among those that train together.

    With more than one rank ``torch.distributed`` has its default process group before
    a trainer is built: gloo for tensors on the processor and, on a node with GPUs, the
    maker's library (NCCL, RCCL, oneCCL) for those on them.

    Attributes:
        rank: From 0.
        world: How many ranks there are.
        local: Which rank of its node this is; it takes the GPU of that number.
        ranks_per_node: How many of them are on each node.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    ranks_per_node: int = 1


SOLO = Team()
