"""One of two ranks that train a small model with DDP, each step with a meter.

Called with rank, world, the store's port and a folder; rank 0 writes ``report.json``,
by the name of what was made slow.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hansa.worker.measured import attach, over_ranks
from hansa.worker.meter import Measure, Meter
from hansa.worker.team import Team

SLOW_S = 0.6
"""How long rank 1 sleeps in each step of a case."""

MEASURE = Measure(warm_up=1, steps=3, profiled=2)


def main() -> None:
    """Measure each case, one after the other."""
    rank, world, port = (int(word) for word in sys.argv[1:4])
    store = torch.distributed.TCPStore("127.0.0.1", port, world, is_master=rank == 0)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=world
    )
    team = Team(rank=rank, world=world)
    found = {case: _measured(case, team) for case in ("nothing", "rank", "data")}
    if rank == 0:
        Path(sys.argv[4], "report.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _measured(slow: str, team: Team) -> dict[str, float]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1)))
    inputs = torch.randn(32, 64)
    meter = Meter(MEASURE)
    attach(meter, torch.device("cpu"))
    torch.distributed.barrier()
    for _ in range(sum((MEASURE.warm_up, MEASURE.steps, MEASURE.profiled))):
        with meter.step():
            with meter.data():
                time.sleep(SLOW_S if slow == "data" and team.rank == 1 else 0.0)
            time.sleep(SLOW_S if slow == "rank" and team.rank == 1 else 0.0)
            model(inputs).square().mean().backward()
            meter.count(samples=len(inputs), tokens=10 * (team.rank + 1))
    return over_ranks(meter.numbers(), team)


if __name__ == "__main__":
    main()
