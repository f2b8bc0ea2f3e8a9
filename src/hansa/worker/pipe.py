"""Tensors from one thread to another, with a bound on what is on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Final

from hansa.worker.base import Array

BOUND: Final = 256 * 1024 * 1024
"""Bytes that wait at most; a larger tensor waits alone."""


class Pipe:
    """A queue of named tensors, which it copies.

    Args:
        bound: Bytes that wait at most.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._change = Condition()
        self._items: deque[tuple[str, Array]] = deque()
        self._bytes = 0
        self._closed = False
        self._drained = False

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._bytes

    def put(self, name: str, value: Array) -> None:
        """Add a tensor when there is room; drop it if nobody reads any more."""
        with self._change:
            self._change.wait_for(lambda: self._has_room(value.nbytes))
            if self._drained:
                return
            # A copy: the trainer may change or reuse what it has given.
            self._items.append((name, value.copy()))
            self._bytes += value.nbytes
            self._change.notify_all()

    def close(self) -> None:
        """Say that nothing follows."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def drain(self) -> None:
        """Say that nobody reads any more."""
        with self._change:
            self._drained = True
            self._items.clear()
            self._bytes = 0
            self._change.notify_all()

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return
                name, value = self._items.popleft()
                self._bytes -= value.nbytes
                self._change.notify_all()
            yield name, value

    def _has_room(self, size: int) -> bool:
        return self._drained or not self._items or self._bytes + size <= self._bound
