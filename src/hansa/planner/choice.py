"""Which sharding and which micro batch: the least communication that fits."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.planner.fitting import BUSY, MARGIN, Choice, Machine, Wants, fit, nearest
from hansa.planner.memory import Parts
from hansa.planner.remedies import remedies
from hansa.planner.shape import ModelShape

__all__ = ["BUSY", "MARGIN", "Choice", "Machine", "Misfit", "Wants", "choose"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """Nothing fits.

    Attributes:
        parts: The memory of the fullest rank in the smallest way that is allowed.
        why: What is too large, as a sentence.
        remedies: What would fit, the easiest first; each a phrase.
    """

    parts: Parts
    why: str
    remedies: tuple[str, ...]

    @property
    def advice(self) -> str:
        """What would fit, as a sentence."""
        if not self.remedies:
            return "No single change of the plan makes it fit; choose a smaller model."
        return f"One of these would fit: {'; '.join(self.remedies)}."


def choose(shape: ModelShape, wants: Wants, machine: Machine) -> Choice | Misfit:
    """Return how to train a model so that it fits, and moves as little as possible.

    Args:
        shape: The model.
        wants: What `work` asks for.
        machine: Ranks and memory.
    """
    found = fit(shape, wants, machine)
    if found is not None:
        return found
    parts, why = nearest(shape, wants, machine)
    return Misfit(parts=parts, why=why, remedies=remedies(shape, wants, machine))
