"""Whole arrays in one safetensors file, without torch and without a copy of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hansa.store.dtypes import BY_NUMPY, Dtype, convert
from hansa.store.tensorfile import TensorFile, TensorInfo, TensorWriter
from hansa.worker.base import Array

Arrays = Iterable[tuple[str, Array]]


def write_arrays(
    path: Path, arrays: Callable[[], Arrays], dtype: Dtype | None = None
) -> None:
    """Write arrays into a new file and flush it to disk.

    Args:
        path: The file; must not exist.
        arrays: Gives names and arrays, in the order of writing; called twice, once
            for the shapes and once for the values.
        dtype: Format of all floating arrays; None keeps each one's own.

    Raises:
        StorageFull: There is no space.
    """
    layout = [_info(name, array, dtype) for name, array in arrays()]
    with TensorWriter(path, layout) as writer:
        for info, (_, array) in zip(layout, arrays(), strict=True):
            stored = np.empty(array.shape, info.dtype.numpy)
            convert(array, stored)
            writer.write(stored)


def read_arrays(path: Path) -> dict[str, Array]:
    """Return all arrays of a file by name.

    Raises:
        IntegrityError: The file is missing or damaged.
    """
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def _info(name: str, array: Array, dtype: Dtype | None) -> TensorInfo:
    own = BY_NUMPY[array.dtype]
    chosen = dtype if dtype is not None and own.floating else own
    return TensorInfo(name=name, shape=array.shape, dtype=chosen)
