"""When to try again: arithmetic only; whoever retries does the waiting."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.core.rng import uniform


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Exponential back-off with keyed jitter.

    Attributes:
        attempts: Tries in all, the first one included.
        first: Seconds before the second try.
        factor: Each wait is this much longer than the one before.
        longest: No wait is longer than this, in seconds.
        jitter: Share of a wait that may be taken off it, 0 to 1.
    """

    attempts: int = 5
    first: float = 1.0
    factor: float = 2.0
    longest: float = 60.0
    jitter: float = 0.2

    def allows(self, tries: int) -> bool:
        """Tell whether another try may follow after `tries` of them."""
        return tries < self.attempts

    def delay(self, tries: int, key: str = "") -> float:
        """Return the seconds to wait after `tries` (1 or more) failed tries."""
        exponent = min(max(tries, 1) - 1, 64)
        wait = min(self.first * self.factor**exponent, self.longest)
        return wait * (1.0 - self.jitter * uniform("retry", key, tries))
