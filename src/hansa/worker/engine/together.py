"""What the ranks of a team tell each other about numbers and failures.

All of it is called on all ranks; a rank alone talks to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hansa.core.errors import HansaError, WorkerError
from hansa.worker.team import Team


def summed(numbers: Sequence[float], team: Team) -> list[float]:
    """Return the sums of each number over all ranks."""
    if team.world == 1:
        return list(numbers)
    values = torch.tensor(list(numbers), dtype=torch.float64)
    torch.distributed.all_reduce(values)
    return [float(value) for value in values]


def largest(number: float, team: Team) -> float:
    """Return the largest of the ranks' numbers."""
    if team.world == 1:
        return number
    value = torch.tensor([number], dtype=torch.float64)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return float(value)


@contextmanager
def agreed(team: Team, what: str) -> Iterator[None]:
    """Let what is done within fail on all ranks if it does on one.

    Else the others would wait for that rank at their next collective. Nothing within
    may be a collective.

    Args:
        team: The ranks.
        what: What is done, as a sentence begins: "Loading the model".

    Raises:
        WorkerError: It failed on another rank.
    """
    failure: HansaError | OSError | None = None
    try:
        yield
    except (HansaError, OSError) as error:
        failure = error
    failed = largest(0.0 if failure is None else team.world - team.rank, team)
    if failure is not None:
        raise failure
    if failed:
        raise WorkerError(
            f"{what} failed on rank {team.world - int(failed)}.",
            hint="Its log says why.",
            transient=True,
        )
