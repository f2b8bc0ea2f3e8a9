"""The arithmetic of aggregation: a weighted sum of tensors, in fp32, by blocks.

For every number, in the order of the terms: the product is rounded to fp32, then
the sum is. So the result is the same on every machine, and memory does not depend
on the size of the model or on the number of terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np

from hansa.core.errors import IntegrityError, StoreError
from hansa.store.dtypes import BLOCK, Array, convert
from hansa.store.folder import TensorFolder
from hansa.store.tensorfile import TensorInfo, scratch


class WeightedSum:
    """A sum of coefficient times folder, read where it is asked for.

    Args:
        terms: Coefficients and where their tensors lie, in the order of adding.
        base: The term whose names and shapes count and whose integer tensors are
            taken over.

    Raises:
        StoreError: A coefficient is not finite in fp32.
        IntegrityError: A term lacks a floating tensor of the base, has one more, or
            one of another shape.
    """

    def __init__(
        self, terms: Sequence[tuple[float, TensorFolder]], base: TensorFolder
    ) -> None:
        self.base = base
        self._terms = [(_single(factor), folder) for factor, folder in terms]
        for _, folder in self._terms:
            _check_alike(base, folder)
        self._raw = scratch()
        self._wide = np.empty(BLOCK, np.float32)
        self._totals = cycle([np.empty(BLOCK, np.float32) for _ in range(2)])

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        """Yield a tensor of the result, flat, in blocks.

        A block stays as it is while the next one is made, and is reused after that.

        Args:
            info: A tensor of the base. Floating ones come as float32 sums, others as
                they are.
        """
        step = BLOCK if info.dtype.floating else BLOCK * 4 // info.dtype.numpy.itemsize
        for start in range(0, info.elements, step):
            out = next(self._totals)
            if info.dtype.floating:
                yield self._sum(info.name, start, out[: info.elements - start])
            else:
                yield self.base.read_block(info.name, start, out.view(np.uint8))

    def _sum(self, name: str, start: int, total: Array) -> Array:
        count = len(total)
        wide = self._wide[:count]
        with np.errstate(over="ignore", invalid="ignore"):
            for index, (factor, folder) in enumerate(self._terms):
                item = folder.info(name).dtype.numpy.itemsize
                block = folder.read_block(name, start, self._raw[: count * item])
                if block.dtype != np.float32:
                    convert(block, wide)
                    block = wide
                if index == 0:
                    np.multiply(block, factor, out=total)
                else:
                    np.multiply(block, factor, out=wide)
                    np.add(total, wide, out=total)
        return total


def _single(factor: float) -> np.float32:
    with np.errstate(over="ignore"):
        single = np.float32(factor)
    if np.isfinite(single):
        return single
    raise StoreError(f"The coefficient {factor} is not a finite fp32 number.")


def _check_alike(base: TensorFolder, other: TensorFolder) -> None:
    expected, found = base.shapes(), other.shapes()
    where = other.directory
    if missing := sorted(expected.keys() - found.keys()):
        raise IntegrityError(f"{where} lacks the tensor {missing[0]!r}.")
    if extra := sorted(found.keys() - expected.keys()):
        raise IntegrityError(f"{where} has the tensor {extra[0]!r}; its base has not.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise IntegrityError(
                f"Tensor {name!r} of {where} has shape {list(found[name])}; that of "
                f"its base is {list(shape)}."
            )
