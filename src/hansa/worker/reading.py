"""Tensors of a version for a trainer, whole or by rows."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np

from hansa.core.errors import WorkerError
from hansa.store.folder import TensorFolder
from hansa.worker.base import Array, TensorReader


@runtime_checkable
class RowReader(Protocol):
    """A `TensorReader` that also gives some rows: a rank reads what it holds.

    A tensor's rows are along its first axis; one without axes is a row.
    """

    def __call__(self, name: str) -> Array:
        """Return the whole tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as float32."""
        ...


class FolderReader:
    """The `RowReader` of a folder of safetensors; of a version, an update or a state.

    Args:
        folder: An open folder; it has to stay open.
    """

    def __init__(self, folder: TensorFolder) -> None:
        self._folder = folder

    def __call__(self, name: str) -> Array:
        """Return the whole tensor in the dtype it is stored in."""
        return self._folder.read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._folder.info(name).shape

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as float32; only their bytes are read."""
        rest = self.shape(name)[1:]
        width = math.prod(rest)
        out = np.empty((stop - start) * width, np.float32)
        self._folder.read_floats(name, start * width, out)
        return out.reshape(stop - start, *rest)


def read_rows(
    read: TensorReader,
    name: str,
    shape: tuple[int, ...],
    rows: tuple[int, int],
    *,
    of: str = "version",
) -> Array:
    """Return some rows of a tensor, only them where the reader can.

    Args:
        read: Gives the tensors.
        name: Which one.
        shape: The shape that the whole tensor must have.
        rows: The first row, and the one after the last.
        of: What the tensors are of, for the messages.

    Returns:
        float32, (rows, ...).

    Raises:
        WorkerError: The tensor is missing or has another shape.
    """
    by_rows = read if isinstance(read, RowReader) else None
    try:
        whole = np.empty(0) if by_rows else np.asarray(read(name))
        found = by_rows.shape(name) if by_rows else whole.shape
    except KeyError as error:
        raise WorkerError(f"The {of} lacks the tensor {name!r}.") from error
    if found != shape:
        raise WorkerError(
            f"The {of}'s tensor {name!r} is {list(found)}, the model's is "
            f"{list(shape)}.",
            hint="Do not change the model of a run.",
        )
    start, stop = rows
    if by_rows is not None:
        return by_rows.rows(name, start, stop)
    # By way of float32: numpy's bfloat16 is unknown to torch.
    return whole.reshape(-1, *shape[1:])[start:stop].astype(np.float32)
