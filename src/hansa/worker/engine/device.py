"""Which device a rank has, whoever made it."""

from __future__ import annotations

import os

import torch

from hansa.worker.team import SOLO, Team

KINDS = ("cuda", "xpu")
"""What torch calls accelerators; AMD's are "cuda" to it."""


def rank_device(team: Team = SOLO) -> torch.device:
    """Return the device that a rank trains on, which becomes torch's current one.

    The ranks of a node take its GPUs in turn; where the launcher gave each rank its
    own, a rank sees but that one.
    """
    for kind in KINDS:
        devices = getattr(torch, kind, None)
        if devices is not None and devices.is_available():
            index = team.local % devices.device_count()
            devices.set_device(index)
            return torch.device(kind, index)
    return torch.device("cpu")


def prepare(seed: int, team: Team = SOLO) -> torch.device:
    """Seed torch, set its threads and return the device to train on.

    On a processor the kernels used here are deterministic for a number of threads,
    which is therefore fixed; on a GPU torch is asked for deterministic ones.

    Args:
        seed: The same on all ranks, so that they build the same model.
        team: The ranks.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]
    torch.set_num_threads(int(threads) if threads.isdigit() and int(threads) else 1)
    torch.manual_seed(seed)
    device = rank_device(team)
    if device.type != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device
