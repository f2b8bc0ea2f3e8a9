"""Training state of a user's own model on disk: tensors, optimizer, generators.

Only safetensors and JSON, never pickle::

    <directory>/model.safetensors       parameters and buffers, by name
    <directory>/optimizer.safetensors   the optimizer's state, as "<index>.<key>"
    <directory>/optimizer.json          its groups, and plain numbers of its state
    <directory>/generators-<rank>.safetensors   state of torch's generators

The first rank writes model and optimizer; each has generators of its own, or all would
draw the same after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hansa.core.errors import WorkerError

_MODEL, _STATE = "model.safetensors", "optimizer.safetensors"
_GROUPS, _GENERATORS = "optimizer.json", "generators-{}.safetensors"


def tensors_of(model: nn.Module | Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's tensors by name; DDP's wrapper is taken off."""
    if not isinstance(model, nn.Module):
        return dict(model)
    if type(model).__name__ == "DistributedDataParallel":
        model = model.get_submodule("module")
    return dict(model.state_dict())


@torch.no_grad()
def set_tensors(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a model, in place.

    Raises:
        WorkerError: The model has no such tensor, or it has another shape.
    """
    own = tensors_of(model)
    for name, value in values.items():
        if name not in own:
            raise WorkerError(
                f"The model has no tensor {name!r}, which the version has.",
                hint="Was version 0 made of the same model (model.options.initial)?",
            )
        if own[name].shape != value.shape:
            raise WorkerError(
                f"The version's tensor {name!r} is {list(value.shape)}, the model's is "
                f"{list(own[name].shape)}."
            )
        own[name].copy_(value)


def save(directory: Path, model: nn.Module, optimizer: Any, rank: int) -> None:
    """Write this rank's part of what `restore` needs into an existing folder.

    Args:
        directory: The folder, the same one for all ranks.
        model: The model.
        optimizer: One of torch's; None: there is none.
        rank: Whose generators these are; 0 writes the rest, too.
    """
    _save_generators(directory / _GENERATORS.format(rank))
    if rank:
        return
    distinct: dict[int, str] = {}
    for name, tensor in tensors_of(model).items():
        distinct.setdefault(tensor.data_ptr() or id(tensor), name)
    own = tensors_of(model)
    save_file({n: own[n].contiguous() for n in distinct.values()}, directory / _MODEL)
    if optimizer is None:
        return
    whole = optimizer.state_dict()
    entries = {
        f"{index}.{key}": value
        for index, of_one in whole["state"].items()
        for key, value in of_one.items()
    }
    arrays = {n: v.contiguous() for n, v in entries.items() if isinstance(v, Tensor)}
    plain = {n: v for n, v in entries.items() if not isinstance(v, Tensor)}
    save_file(arrays, directory / _STATE)
    told = {"groups": whole["param_groups"], "plain": plain}
    (directory / _GROUPS).write_text(json.dumps(told), "utf-8")


def restore(directory: Path, model: nn.Module, optimizer: Any, rank: int) -> None:
    """Put what `save` wrote into model, optimizer and this rank's generators.

    A rank that was not there when it was saved keeps the generators that it has.

    Raises:
        WorkerError: It is of another model.
    """
    set_tensors(model, load_file(directory / _MODEL))
    _restore_generators(directory / _GENERATORS.format(rank))
    if optimizer is None:
        return
    told = json.loads((directory / _GROUPS).read_text("utf-8"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in (load_file(directory / _STATE) | told["plain"]).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()["param_groups"]
    groups = [
        {key: _like(now.get(key), value) for key, value in group.items()}
        for now, group in zip(current, told["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _save_generators(path: Path) -> None:
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            generators[f"cuda.{index}"] = state
    save_file(generators, path)


def _restore_generators(path: Path) -> None:
    if not path.is_file():
        return
    generators = load_file(path)
    torch.set_rng_state(generators["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in generators:
                torch.cuda.set_rng_state(generators[f"cuda.{index}"], index)


def _like(now: object, value: Any) -> Any:
    """Undo what JSON did to tuples, such as Adam's betas."""
    return tuple(value) if isinstance(now, tuple) else value
