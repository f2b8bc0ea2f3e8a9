"""The process group of `torch.distributed` that trainers use, and each rank's GPU."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Final

import torch
from torch import distributed
from torch._C._distributed_c10d import TCPStore

from hansa.core.errors import WorkerError
from hansa.worker.team import Team

TIMEOUT: Final = timedelta(minutes=30)
"""For collectives whose ranks do not do the same. What becomes of ranks that die or
hang is the watch's, which is much faster."""

_BACKENDS: Final = {"cuda": "nccl", "xpu": "xccl"}
"""By the device's name in torch; AMD's are "cuda", and RCCL is "nccl"."""


def make_store(host: str, port: int, server: socket.socket | None) -> TCPStore:
    """Return this rank's end of the store where ranks look for each other.

    Args:
        host: Where rank 0 is; empty on rank 0 itself, if it is not this host alone.
        port: Where it listens.
        server: On rank 0 what listens there; this takes it over.
    """
    return TCPStore(
        host or "127.0.0.1",
        port,
        is_master=server is not None,
        timeout=TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=server.detach() if server else None,
    )


def make_group(store: TCPStore, team: Team) -> int:
    """Make the default process group; return the number of this rank's GPU.

    gloo carries tensors on the processor, the maker's library those on GPUs.

    Raises:
        WorkerError: There are fewer GPUs than ranks on this node.
    """
    kind = accelerator()
    index = device_index(team, visible(kind)) if kind else team.local
    device = torch.device(kind, index) if kind else None
    if device is not None:
        torch.accelerator.set_device_index(index)
    backend = f"cpu:gloo,{kind}:{_BACKENDS[kind]}" if kind else "cpu:gloo"
    os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed asks for it
    distributed.init_process_group(
        backend,
        store=store,
        rank=team.rank,
        world_size=team.world,
        timeout=TIMEOUT,
        device_id=device,
    )
    return index


def end_group() -> None:
    """Take the process group apart."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def accelerator() -> str:
    """Return what kind of GPU this process sees, in torch's word; empty: none."""
    for kind in _BACKENDS:
        if torch.get_device_module(kind).is_available():
            return kind
    return ""


def visible(kind: str) -> int:
    """Return how many GPUs this process sees."""
    return int(torch.get_device_module(kind).device_count())


def device_index(team: Team, count: int) -> int:
    """Return which of the GPUs that a rank sees it takes.

    Args:
        team: Who this is.
        count: How many it sees: all of the node, or only its own, where the launcher
            shows each rank just that.

    Raises:
        WorkerError: It can't have one of its own.
    """
    if count == 1 or team.local < count:
        return 0 if count == 1 else team.local
    raise WorkerError(
        f"Rank {team.rank} is number {team.local} of {team.ranks_per_node} on "
        f"{os.uname().nodename}, where it sees {count} GPUs.",
        hint="Ask for as many ranks as the node has GPUs, and look at "
        "`environment.launch` in site.yaml: it may bind them.",
    )
