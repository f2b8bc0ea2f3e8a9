"""LoRA: the model stays as it is, small adapters beside some layers are trained.

Hu et al., arXiv 2106.09685: a layer computes with ``W0 + s B A``, ``s = alpha / r``.
Versions of exact aggregation bring a residual R, too, which goes into W0 (see
`hansa.store.adapters`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hansa.core.errors import SpecError, WorkerError
from hansa.store.adapters import FACTOR_A, FOLDED, STACKED_A, STACKED_B
from hansa.worker.base import Array, TensorReader
from hansa.worker.llm_options import LoraOptions
from hansa.worker.reading import RowReader, read_rows
from hansa.worker.trainers.empty import without_memory
from hansa.worker.trainers.stream import cast

_ADAPTER = "default"
_SAMPLE = 64


def add_adapters(module: nn.Module, options: LoraOptions) -> None:
    """Freeze `module` and put adapters beside its target layers, in place.

    The adapters are float32 whatever the model's dtype is; their numbers are not set.

    Args:
        module: The model.
        options: Rank, scale and target layers.

    Raises:
        SpecError: The model has no linear layer of a target's name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    known = linear_layers(module)
    missing = sorted(set(options.targets) - set(known))
    if missing:
        raise SpecError(
            f"The model has no linear layer named {missing[0]!r} for a LoRA adapter.",
            hint="Correct model.options.lora.targets in the federation file. Its "
            f"linear layers are named {', '.join(known)}.",
        )
    module.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.targets),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(
            name.rpartition(".")[2] in options.targets and _inputs_first(part)
            for name, part in module.named_modules()
        ),
    )
    with without_memory():
        inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    for parameter in adapters(module).values():
        parameter.data = parameter.data.float()


def linear_layers(module: nn.Module) -> list[str]:
    """Return the last words of the names of all layers that multiply by a matrix."""
    found = {
        name.rpartition(".")[2]
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) or _inputs_first(part)
    }
    return sorted(found)


def _inputs_first(part: nn.Module) -> bool:
    """Tell whether a layer keeps its weight as [in, out], as GPT-2's do."""
    return type(part).__name__ == "Conv1D"


def first_values(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return the numbers that new adapters begin with, by name.

    They change nothing until they are trained: B is zero. A is uniform up to
    1 / sqrt(inputs), as in peft.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in sorted(adapters(module).items()):
        value = torch.zeros(parameter.shape)
        if name.endswith(FACTOR_A):
            bound = 1 / math.sqrt(value.shape[1])
            value.uniform_(-bound, bound, generator=generator)
        values[name] = value
    return values


def adapters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters by name, without peft's adapter name in it."""
    return {
        name.replace(f".{_ADAPTER}.", "."): parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def frozen(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the frozen parameters by the name that they had before the adapters."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }


def fingerprint(module: nn.Module, read: RowReader) -> str:
    """Return a hash of the frozen model: names, shapes and a sample of each tensor.

    Facilities read the frozen model from their own disk; this tells whether all of
    them have the same, without reading every byte of it.

    Args:
        module: A model with adapters; only names, shapes and dtypes count.
        read: Gives its frozen tensors.

    Raises:
        WorkerError: A tensor is missing or has another shape.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(frozen(module).items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(_sample(name, tensor, read).tobytes())
    return digest.hexdigest()


def _sample(name: str, tensor: Tensor, read: RowReader) -> Array:
    """Return some numbers, evenly spread, as the model has rounded them."""
    shape = tuple(tensor.shape)
    width = math.prod(shape[1:])
    stride = max(1, tensor.numel() // _SAMPLE)
    places = range(0, tensor.numel(), stride)[:_SAMPLE]
    found = np.empty(len(places), np.float32)
    row, numbers = -1, found[:0]
    for index, place in enumerate(places):
        if place // width != row:
            row = place // width
            part = read_rows(read, name, shape, (row, row + 1), of="frozen model")
            numbers = part.astype(np.float32).reshape(-1)
        found[index] = numbers[place % width]
    return cast(found, tensor.dtype)


def residual_names(fixed: Iterable[str]) -> frozenset[str]:
    """Return those of a version's fixed tensors that are residuals of adapters."""
    endings = (FOLDED, STACKED_A, STACKED_B)
    return frozenset(name for name in fixed if name.endswith(endings))


def own_weights(module: nn.Module, residuals: Collection[str]) -> dict[str, str]:
    """Give layers with residuals weights of their own, where they share them.

    An embedding is often shared with the last layer, and has no part in its residual.

    Args:
        module: A model with adapters, changed in place.
        residuals: What `residual_names` found.

    Returns:
        By the name of a frozen parameter that is new, the one that it was.
    """
    before = {id(tensor): name for name, tensor in frozen(module).items()}
    found = {}
    for name, layer in module.named_modules():
        ends = (FOLDED, STACKED_B)
        if not any(name + end in residuals for end in ends):
            continue
        base: Any = layer.get_submodule("base_layer")
        first = before.get(id(base.weight))
        if first not in (None, f"{name}.weight"):
            found[f"{name}.weight"] = str(first)
            base.weight = nn.Parameter(base.weight.detach().clone(), False)
    return found


class WithResiduals:
    """A `RowReader` of the frozen model with a version's residuals in it.

    ``W0 + s R`` is computed in float32 from the W0 that the model has; what takes it
    rounds it once more to the model's dtype. A dense R is as large as the layer, so no
    more than one is held at a time.

    Args:
        module: A model with adapters; only names, shapes and dtypes count.
        base: Gives its frozen tensors.
        names: What `residual_names` found.
        read: Gives the version's tensors; it is asked as rows are.
        aliases: What `own_weights` returned.

    Raises:
        WorkerError: A residual is of another model.
    """

    def __init__(
        self,
        module: nn.Module,
        base: RowReader,
        names: Collection[str],
        read: TensorReader,
        aliases: Mapping[str, str],
    ) -> None:
        self._base = base
        self._aliases = aliases
        self._read = read
        self._layers: dict[str, tuple[nn.Module, set[str]]] = {}
        self._latest: tuple[str, _Residual | None] = ("", None)
        left = set(names)
        for name, layer in module.named_modules():
            own = {name + end for end in (FOLDED, STACKED_A, STACKED_B)} & left
            if not own or _ADAPTER not in getattr(layer, "lora_A", ()):
                continue
            left -= own
            self._layers[f"{name}.weight"] = layer, own
        if left:
            raise WorkerError(
                f"The version's tensor {min(left)!r} belongs to no adapter of the "
                "model.",
                hint="Do not change `model.options` of a run.",
            )

    def __call__(self, name: str) -> Array:
        """Return the whole tensor as float32."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._base.shape(self._aliases.get(name, name))

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as float32."""
        found = self._base.rows(self._aliases.get(name, name), start, stop)
        residual = self._residual(name)
        if residual is None:
            return found
        wide = torch.from_numpy(cast(found, residual.dtype))
        summed: Array = (wide + residual.rows(start, stop)).numpy()
        return summed

    def _residual(self, name: str) -> _Residual | None:
        if name in self._layers and self._latest[0] != name:
            self._latest = "", None  # the one before goes first
            layer, own = self._layers[name]
            found = _Residual.of(layer, name.removesuffix(".weight"), own, self._read)
            self._latest = name, found
        return self._latest[1] if self._latest[0] == name else None


@dataclass(frozen=True, slots=True)
class _Residual:
    """s R of one layer, as a product [rows, q] [q, columns] or, with one factor, dense.

    Attributes:
        left: The first factor; or all of it.
        right: The second one.
        scale: s.
        dtype: dtype of the layer's weight.
    """

    left: Tensor
    right: Tensor | None
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(
        cls, layer: nn.Module, name: str, own: Collection[str], read: TensorReader
    ) -> _Residual:
        base: Any = layer.get_submodule("base_layer")
        scaling: Any = layer.scaling
        if name + FOLDED in own:
            left, right = _floats(read(name + FOLDED)), None
        else:
            left = _floats(read(name + STACKED_B))
            right = _floats(read(name + STACKED_A))
        if getattr(layer, "fan_in_fan_out", False):
            # Some models keep their weights as [in, out]; peft knows which.
            left, right = (left.T, None) if right is None else (right.T, left.T)
        shape = [len(left), (left if right is None else right).shape[1]]
        if shape != list(base.weight.shape):
            raise WorkerError(
                f"The residual of the layer {name!r} is {shape}, its weight is "
                f"{list(base.weight.shape)}."
            )
        return cls(left, right, scaling[_ADAPTER], base.weight.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        part = self.left[start:stop]
        return self.scale * (part if self.right is None else part @ self.right)


def _floats(value: Any) -> Tensor:
    # By way of float32: numpy's bfloat16 is unknown to torch.
    return torch.from_numpy(np.asarray(value).astype(np.float32))


@contextmanager
def only_first(
    factors: Mapping[str, Tensor],
    rank: int,
    starts: Mapping[str, int] | None = None,
) -> Iterator[None]:
    """Let the steps done in this context train only the adapters' first components.

    Those are the first rows of A and columns of B. Of the others the gradients become
    zero at once, so they count for no norm; and the values are put back at the end, so
    that weight decay does not touch them either.

    Args:
        factors: What `adapters` returned, with gradients.
        rank: How many components are trained.
        starts: Which row of the whole factor is the first one here, where a rank of a
            job holds some of its rows only.
    """
    first = starts or {}
    others = [
        (factor, _others(name, rank, first.get(name, 0)))
        for name, factor in factors.items()
    ]
    for parameter, where in others:
        if parameter.grad is not None:
            parameter.grad[where] = 0
    kept = [parameter.detach()[where].clone() for parameter, where in others]
    yield
    for (parameter, where), value in zip(others, kept, strict=True):
        parameter.detach()[where] = value


def _others(name: str, rank: int, start: int) -> tuple[slice, ...]:
    if name.endswith(FACTOR_A):
        return (slice(max(rank - start, 0), None),)
    return slice(None), slice(rank, None)
