"""Models without memory: their parameters have a shape and a dtype, but no numbers.

A back end first decides which rows this rank holds; only those are then allocated and
read (`stream`), so that no rank ever holds more of a model than it must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Put the parameters of modules that are made in this context on the meta device.

    Buffers get their values as always: those that no file has, such as the frequencies
    of rotary positions, would be lost otherwise.
    """
    hook = register_module_parameter_registration_hook(_on_meta)
    try:
        with _Undrawn():
            yield
    finally:
        hook.remove()


def allocate(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """Give all parameters memory on `device`, in place; their numbers are not set.

    Those that have memory are moved there. One that several modules share stays one.
    Buffers stay as exact as they were made.

    Args:
        model: Changed in place.
        device: Where it trains.
        dtype: Floating parameters are converted to it; None: they stay as they are.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        allocate_own(module, device, dtype, made)
    model.to(device)  # the buffers


def allocate_own(
    module: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None,
    made: dict[nn.Parameter, nn.Parameter],
) -> bool:
    """Do that with the parameters of a module itself, not with those of its parts.

    Args:
        module: Changed in place.
        device: As `allocate`.
        dtype: As `allocate`.
        made: What was made of which parameter; is added to.

    Returns:
        Whether one had no memory.
    """
    empty = False
    for name, old in module.named_parameters(recurse=False, remove_duplicate=False):
        wanted = dtype if dtype and old.is_floating_point() else old.dtype
        if not old.is_meta:
            old.data = old.data.to(device, wanted)
            continue
        empty = True
        if old not in made:  # torch refuses to give one on the meta device other data
            values = torch.empty(old.shape, dtype=wanted, device=device)
            made[old] = nn.Parameter(values, old.requires_grad)
        setattr(module, name, made[old])
    return empty


def _on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
    del module, name
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


class _Undrawn(TorchFunctionMode):
    """Draws no initial values for what has no memory.

    There torch would draw them by its compiler, whose import takes a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        named = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            tensor = named["tensor"] if "tensor" in named else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **named)
