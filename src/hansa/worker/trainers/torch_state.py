"""Training state of a torch model on disk: tensors, optimizer, random generators.

Only safetensors and JSON, never pickle. A model that is saved here and restored
into a freshly built one continues with bit-identical steps::

    <directory>/tensors.safetensors    parameters and buffers, by name
    <directory>/optimizer.safetensors  optimizer state, as "<index>.<key>"
    <directory>/rng.safetensors        state of the generators: "cpu", "cuda.0", ...
    <directory>/optimizer.json         parameter groups and plain numbers of the state
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hansa.core.errors import WorkerError

TENSORS = "tensors.safetensors"
OPTIMIZER = "optimizer.safetensors"
RNG = "rng.safetensors"
GROUPS = "optimizer.json"


def save_torch(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `tensors`, the state of `optimizer` and torch's generators.

    Args:
        directory: An existing folder.
        tensors: Parameters (and buffers) by name; no two may share memory.
        optimizer: Its parameter order must be the same when it is restored.
    """
    values = {name: t.detach().contiguous() for name, t in tensors.items()}
    save_file(values, directory / TENSORS)
    state = optimizer.state_dict()
    arrays: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                arrays[f"{index}.{key}"] = value.detach().contiguous()
            else:
                plain.setdefault(str(index), {})[key] = value
    save_file(arrays, directory / OPTIMIZER)
    save_file(_rng(), directory / RNG)
    groups = {"groups": state["param_groups"], "state": plain}
    (directory / GROUPS).write_text(json.dumps(groups))


def restore_torch(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put what `save_torch` wrote into `tensors` (in place) and `optimizer`.

    Raises:
        WorkerError: The saved state is of another model or optimizer, or damaged.
    """
    try:
        _restore_tensors(directory / TENSORS, tensors)
        _restore_optimizer(directory, optimizer)
        _restore_rng(load_file(directory / RNG))
    except WorkerError:
        raise
    except Exception as error:
        # Torch and safetensors raise a dozen types for a damaged or foreign file.
        raise WorkerError(
            f"The training state in {directory} can't be restored: {error}"
        ) from error


def _restore_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file, torch.no_grad():
        differing = sorted(set(file.keys()) ^ set(tensors))
        if differing:
            raise WorkerError(
                f"{path} is of another model: tensor {differing[0]!r} is only in one "
                "of them."
            )
        for name, tensor in tensors.items():
            saved = file.get_tensor(name)
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise WorkerError(
                    f"{path}: tensor {name!r} is {saved.dtype}{list(saved.shape)}, "
                    f"the model's is {tensor.dtype}{list(tensor.shape)}."
                )
            tensor.copy_(saved)


def _restore_optimizer(directory: Path, optimizer: torch.optim.Optimizer) -> None:
    saved = json.loads((directory / GROUPS).read_text())
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in saved["state"].items()
    }
    for name, value in load_file(directory / OPTIMIZER).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = [
        {key: _like(group.get(key), value) for key, value in entries.items()}
        for group, entries in zip(
            optimizer.state_dict()["param_groups"], saved["groups"], strict=True
        )
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _like(current: object, value: Any) -> Any:
    """Undo what JSON did to tuples, such as Adam's betas."""
    return tuple(value) if isinstance(current, tuple) else value


def _rng() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"cuda.{index}"] = state
    return states


def _restore_rng(states: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
