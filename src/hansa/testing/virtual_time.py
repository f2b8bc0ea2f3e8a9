"""Asyncio event loops on which waiting takes no time, or less.

On `VirtualTimeLoop`, `loop.time()` jumps to the next timer whenever nothing else can
happen. Work that was handed to a thread is waited for in real time first, so results
don't depend on how fast the machine is. On `ScaledTimeLoop` time passes by itself, only
faster.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(RuntimeError):
    """Nothing will ever happen any more, yet the main task is not done."""


class _Selector(selectors.DefaultSelector):
    """Advances the virtual clock instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threads_busy = 0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if self.threads_busy and timeout != 0:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout is None:
            raise Stuck("The loop waits, but no timer and no thread is left.")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop whose clock is virtual."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run `func` on a thread; virtual time stands still until it is done."""
        self._virtual.threads_busy += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the base class's
        """Wait, in real time, for the threads to end."""
        self._virtual.threads_busy += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._virtual.threads_busy -= 1

    def _thread_done(self, future: object) -> None:
        self._virtual.threads_busy -= 1


class _Hasty(selectors.DefaultSelector):
    """Waits `haste` times shorter than it is asked to."""

    def __init__(self, haste: float) -> None:
        super().__init__()
        self._haste = haste

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._haste)


class ScaledTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop whose seconds are short, but pass by themselves.

    Args:
        haste: How many of them are one real second.
    """

    def __init__(self, haste: float) -> None:
        self._haste = haste
        super().__init__(_Hasty(haste))

    def time(self) -> float:
        """Return seconds by this loop's hasty clock."""
        return super().time() * self._haste


def run_scaled(main: Coroutine[Any, Any, T], haste: float) -> T:
    """Run a coroutine to its end in scaled time and return its result."""
    with asyncio.Runner(loop_factory=lambda: ScaledTimeLoop(haste)) as runner:
        return runner.run(main)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time and return its result.

    Raises:
        Stuck: It waits for something that can't happen any more.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
