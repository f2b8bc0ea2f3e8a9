"""Builds the back end that was asked for, and makes sure that it is in force."""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import nn

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import resolve
from hansa.worker.engine.base import Engine, Parameters, Recipe
from hansa.worker.llm_options import sharding_misfit
from hansa.worker.team import Team

_HERE: Final = "hansa.worker.engine"
ENGINES: Final = {
    "none": f"{_HERE}.none:Alone",
    "ddp": f"{_HERE}.ddp:Replicated",
    "zero1": f"{_HERE}.zero1:SpreadOptimizer",
    "fsdp": f"{_HERE}.fsdp:Sharded",
    "deepspeed-1": f"{_HERE}.deepspeed:DeepSpeed",
    "deepspeed-2": f"{_HERE}.deepspeed:DeepSpeed",
    "deepspeed-3": f"{_HERE}.deepspeed:DeepSpeed",
}
"""The class of each back end; only that of the one in use is imported."""


def make_engine(
    model: nn.Module,
    federated: Parameters,
    recipe: Recipe,
    team: Team,
    device: torch.device,
) -> Engine:
    """Return the engine of a recipe; see `hansa.worker.engine.base.Engine`.

    Raises:
        SpecError: The recipe does not fit the number of ranks, the back end can't do
            what it asks, or its package is not installed.
        WorkerError: What is in force is not what was asked for.
    """
    refuse(recipe, team)
    engine: Engine = resolve(ENGINES[recipe.sharding])(
        model, federated, recipe, team, device
    )
    assert_in_force(engine, recipe, team)
    return engine


def refuse(recipe: Recipe, team: Team) -> None:
    """Raise SpecError if a back end can't do what a recipe asks with so many ranks."""
    if recipe.sharding not in ENGINES:
        raise SpecError(
            f"There is no sharding {recipe.sharding!r}.",
            hint=f"Known: {', '.join(ENGINES)}.",
        )
    misfit = sharding_misfit(
        recipe.sharding, team.world, cpu_offload=recipe.cpu_offload
    )
    if misfit is not None:
        what, hint = misfit
        raise SpecError(what, hint=hint)


def assert_in_force(engine: Engine, recipe: Recipe, team: Team) -> None:
    """Make sure that a model is spread as it was asked for, by looking at it.

    Raises:
        WorkerError: It is not.
    """
    check = _CHECKS.get(recipe.sharding)
    told = engine.words().get("sharding")
    why = f"it calls itself {told}" if told != recipe.sharding else None
    if why is None and check is not None:
        why = check(engine, team)
    if why is not None:
        raise WorkerError(
            f"The sharding {recipe.sharding} is not in force: {why}.",
            hint="Report this with the versions of torch and of the other packages.",
        )


def _check_none(engine: Engine, team: Team) -> str | None:
    if type(engine.module).__name__ == "DistributedDataParallel":
        return "the model is wrapped"
    return None


def _check_ddp(engine: Engine, team: Team) -> str | None:
    from torch.nn.parallel import DistributedDataParallel  # noqa: PLC0415

    module = engine.module
    if not isinstance(module, DistributedDataParallel):
        return f"the model is a {type(module).__name__}"
    size = module.process_group.size()
    return None if size == team.world else f"its group has {size} ranks"


def _check_zero1(engine: Engine, team: Team) -> str | None:
    why = _check_ddp(engine, team)
    if why is not None:
        return why
    pieces = [piece for piece in cast(Any, engine).pieces if piece.trained]
    moved = sum(piece.master.numel() for piece in pieces)
    whole = sum(torch.Size(piece.shape).numel() for piece in pieces)
    return _sum_is(moved, whole, "the optimizer has", team)


def _check_fsdp(engine: Engine, team: Team) -> str | None:
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    if not isinstance(engine.module, FSDPModule):
        return f"the model is a {type(engine.module).__name__}"
    offloads = cast(Any, engine).recipe.cpu_offload
    held = whole = 0
    for name, parameter in engine.module.named_parameters():
        if not isinstance(parameter, DTensor):
            return f"the parameter {name} is not spread"
        if parameter.device_mesh.size() != team.world:
            return f"{name} is spread over {parameter.device_mesh.size()} ranks"
        held, whole = held + parameter.to_local().numel(), whole + parameter.numel()
        if offloads and parameter.device.type != "cpu":
            return f"{name} is on the {parameter.device.type}, not offloaded"
    return _sum_is(held, whole, "the ranks have", team)


def _sum_is(mine: int, whole: int, what: str, team: Team) -> str | None:
    """Say if the ranks together do not have each number once."""
    total = torch.tensor([mine])
    torch.distributed.all_reduce(total)
    found = int(total)
    return None if found == whole else f"{what} {found} numbers of {whole}"


_CHECKS: Final = {
    "none": _check_none,
    "ddp": _check_ddp,
    "zero1": _check_zero1,
    "fsdp": _check_fsdp,
}
