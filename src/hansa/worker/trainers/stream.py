"""A model's numbers from files, by rows: a rank reads those that it holds, no others.

Every source here is a `hansa.worker.reading.RowReader`. Names are those of the model's
own parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hansa.core.errors import WorkerError
from hansa.store.tensorfile import TensorFile
from hansa.worker.base import Array, TensorReader
from hansa.worker.reading import read_rows

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_AT_ONCE = 1 << 20  # numbers that are in memory twice while they are read


class TensorFiles:
    """Tensors of some safetensors files.

    Args:
        files: Which file has each tensor.
        stored: The name that a tensor has in its file, where that is another one.
    """

    def __init__(
        self, files: Mapping[str, TensorFile], stored: Mapping[str, str] | None = None
    ) -> None:
        self._files = files
        self._stored = stored or {}

    @classmethod
    def of(cls, paths: Iterable[Path]) -> TensorFiles:
        """Open some files; raises IntegrityError where one is no safetensors file."""
        files = [TensorFile(path) for path in paths]
        return cls({name: file for file in files for name in file.tensors})

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._stored or self._files)

    def renamed(self, stored: Mapping[str, str]) -> TensorFiles:
        """Return the same files with the names of a model's parameters.

        Args:
            stored: By the parameter's name, the one that its tensor has in the files.
        """
        return TensorFiles(self._files, stored)

    def __call__(self, name: str) -> Array:
        """Return the whole tensor in the dtype it is stored in."""
        return self._found(name).read(self._stored.get(name, name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._found(name).tensors[self._stored.get(name, name)].shape

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as float32; only their bytes are read."""
        file = self._found(name)
        info = file.tensors[self._stored.get(name, name)]
        rest = info.shape[1:]
        width = math.prod(rest)
        count = (stop - start) * width
        raw = np.empty(count * info.dtype.numpy.itemsize, np.uint8)
        block = file.read_block(info, start * width, raw)
        return block.astype(np.float32).reshape(stop - start, *rest)

    def _found(self, name: str) -> TensorFile:
        return self._files[self._stored.get(name, name)]


class InMemory:
    """Tensors that are here already, as torch has them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __call__(self, name: str) -> Array:
        """Return the whole tensor as float32."""
        found: Array = self._tensors[name].detach().float().cpu().numpy()
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return tuple(self._tensors[name].shape)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as float32."""
        tensor = self._tensors[name].detach()
        rows = tensor[start:stop] if tensor.dim() else tensor.view(1)[start:stop]
        found: Array = rows.float().cpu().numpy()
        return found


def weight_files(folder: Path, remedy: str) -> list[Path]:
    """Return the safetensors files of a Hugging Face model folder.

    Args:
        folder: The folder.
        remedy: What to do where files are missing.

    Raises:
        WorkerError: There are none, or one is missing, or the weights are pickles.
    """
    index = folder / INDEX
    if index.is_file():
        names = _indexed(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WorkerError(
                f"{folder} lacks {missing[0]}, one of the {len(names)} files that its "
                f"{INDEX} names.",
                hint=remedy,
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickled = [path.name for kind in _PICKLED for path in sorted(folder.glob(kind))]
    if pickled:
        raise WorkerError(
            f"The weights in {folder} are pickles ({pickled[0]}), which can run code "
            "when they are read; Hansa reads safetensors only.",
            hint="If you trust them, convert them once: read the model with "
            "transformers and write it with `save_pretrained`.",
        )
    raise WorkerError(
        f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}.", hint=remedy
    )


def _indexed(index: Path) -> list[str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkerError(f"{index} can't be read: {error}.") from error
    if any(Path(name).name != name for name in names):
        raise WorkerError(f"{index} names files outside of its folder.")
    return names


def stored_names(
    wanted: Iterable[str], stored: frozenset[str], prefix: str
) -> dict[str, str] | None:
    """Return by parameter the name of its tensor in the files.

    Some models were saved without the prefix that their body has inside of the whole
    model, as GPT-2's ``wte.weight`` for ``transformer.wte.weight``, or with it.

    Returns:
        None: at least one has no tensor of such a name.
    """
    found = {}
    for name in wanted:
        others = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        match = next((other for other in others if other in stored), None)
        if match is None:
            return None
        found[name] = match
    return found


@torch.no_grad()
def fill(
    parameters: Mapping[str, Tensor], read: TensorReader, *, of: str = "model's files"
) -> None:
    """Set the numbers of parameters that have memory, or of this rank's part of them.

    Args:
        parameters: By the name that `read` knows; plain ones, and those that FSDP or
            DeepSpeed has spread.
        read: Gives the tensors; a `RowReader` is only asked for rows held here.
        of: What is read, for the messages.

    Raises:
        WorkerError: A tensor is missing or has another shape.
    """
    for name, parameter in parameters.items():
        part = held(parameter)
        width = math.prod(part.shape[1:])
        step = max(1, _AT_ONCE // max(1, width)) * width
        for start in range(0, len(part.numbers), step):
            target = part.numbers[start : start + step]
            first = part.start + start
            rows = first // width, -(-(first + len(target)) // width)
            value = read_rows(read, name, part.shape, rows, of=of).reshape(-1)
            skip = first - rows[0] * width
            target.copy_(torch.from_numpy(value[skip : skip + len(target)]))


@dataclass(frozen=True, slots=True)
class Held:
    """What a rank holds of a parameter.

    Attributes:
        shape: Of the whole tensor.
        start: Index of the first number here, in flat order.
        numbers: Those that are here, flat; a view.
    """

    shape: tuple[int, ...]
    start: int
    numbers: Tensor


def held(parameter: Tensor) -> Held:
    """Return what this rank holds of a parameter that may be spread."""
    spread: Any = parameter
    if hasattr(spread, "ds_tensor"):  # DeepSpeed's ZeRO 3: equal parts in flat order
        shape, count = tuple(spread.ds_shape), spread.ds_numel
        part = spread.ds_tensor.detach()
        rank = torch.distributed.get_rank(spread.ds_process_group)
        start = min(rank * len(part), count)
        return Held(shape, start, part[: count - start])
    shape = tuple(spread.shape)
    if not hasattr(spread, "placements"):
        return Held(shape, 0, spread.detach().view(-1))
    local = spread.to_local().detach().view(-1)  # FSDP: equal numbers of rows
    if not any(placement.is_shard() for placement in spread.placements):
        return Held(shape, 0, local)
    mesh = spread.device_mesh
    size = -(-shape[0] // mesh.size()) * math.prod(shape[1:])
    start = min(mesh.get_local_rank() * size, math.prod(shape))
    return Held(shape, start, local)


def cast(value: Array, dtype: torch.dtype) -> Array:
    """Return float32 numbers as they are once a model has rounded them to `dtype`."""
    rounded: Array = torch.from_numpy(value).to(dtype).float().numpy()
    return rounded
