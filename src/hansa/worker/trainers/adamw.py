"""AdamW on torch's own kernels, without the import that torch's class brings.

The first use of a ``torch.optim.Optimizer`` imports torch's compiler, 1.4 s of
processor time in every job. The arithmetic is torch's functional AdamW; the state
has the names that the class gives it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hansa.worker.trainers.sgd import gradient

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Adam with decoupled weight decay, over all parameters alike.

    Args:
        parameters: What is trained; their order is that of the state.
        weight_decay: Strength of the decay.
        fused: Whether each parameter is moved in one pass over its numbers, and one
            without a gradient as if that were zero. If not, the kernels are those that
            ``torch.optim.AdamW`` chooses, and such a parameter is left alone.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, weight_decay: float, fused: bool = True
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self._fused = fused
        # On a GPU the quick kernel wants the count there; the others want it here.
        self._steps = [
            torch.zeros((), device=p.device if fused else "cpu")
            for p in self.parameters
        ]
        self._moments = [
            [torch.zeros_like(p) for p in self.parameters] for _ in _MOMENTS
        ]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter by its gradient and forget the gradients."""
        moved = [
            index
            for index, parameter in enumerate(self.parameters)
            if self._fused or parameter.grad is not None
        ]
        adamw(
            [self.parameters[i] for i in moved],
            [gradient(self.parameters[i]) for i in moved],
            [self._moments[0][i] for i in moved],
            [self._moments[1][i] for i in moved],
            [],
            [self._steps[i] for i in moved],
            foreach=False if self._fused else None,
            fused=True if self._fused else None,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=_EPS,
            maximize=False,
        )
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> list[dict[str, Tensor]]:
        """Return each parameter's state, to be read or set in place.

        ``step`` is a number, ``exp_avg`` and ``exp_avg_sq`` have its shape.
        """
        return [
            {"step": step, _MOMENTS[0]: mean, _MOMENTS[1]: square}
            for step, mean, square in zip(self._steps, *self._moments, strict=True)
        ]
