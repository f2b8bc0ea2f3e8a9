"""The optimizers that move a rank's pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from hansa.worker.engine.base import Recipe
from hansa.worker.trainers.adamw import AdamW
from hansa.worker.trainers.sgd import SGD, MomentumSGD


class Optimizer(Protocol):
    """Moves tensors by their gradients; knows nothing of names and ranks."""

    def step(self, lr: float) -> None:
        """Move every tensor by its ``grad`` and forget the gradients."""
        ...

    def state(self) -> list[dict[str, Tensor]]:
        """Return the state of each tensor, to be read or set in place.

        Each entry has the tensor's shape, or is one number.
        """
        ...


def make_optimizer(recipe: Recipe, tensors: Iterable[Tensor]) -> Optimizer:
    """Return the optimizer of a recipe for the tensors that this rank moves."""
    decay = recipe.weight_decay
    if recipe.optimizer == "adamw":
        return AdamW(tensors, weight_decay=decay, fused=recipe.fused)
    if recipe.fused:
        return SGD(tensors, weight_decay=decay)
    return MomentumSGD(tensors, weight_decay=decay, momentum=recipe.momentum)
