"""Plain SGD with the interface of this trainer's `AdamW`.

``w = w - lr * (g + weight_decay * w)``: no momentum, so that an update is the sum of
its gradients, which SCAFFOLD needs. Not torch's class, for the reason that `adamw` has.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class SGD:
    """Gradient descent over all parameters alike.

    Args:
        parameters: What is trained; their order is that of the state.
        weight_decay: Strength of the decay.
    """

    def __init__(self, parameters: Iterable[Tensor], *, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter by its gradient and forget the gradients."""
        for parameter in self.parameters:
            step = parameter * self.weight_decay if self.weight_decay else None
            if parameter.grad is not None:
                step = parameter.grad if step is None else step + parameter.grad
            if step is not None:
                parameter.sub_(step, alpha=lr)
            parameter.grad = None

    def state(self) -> list[dict[str, Tensor]]:
        """Return the state of each parameter: there is none."""
        return [{} for _ in self.parameters]


class MomentumSGD:
    """``torch.optim.SGD`` without the import that the class brings.

    Args:
        parameters: What is trained; one without a gradient is left alone.
        weight_decay: Strength of the decay.
        momentum: Share of the last step that is kept.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, weight_decay: float, momentum: float
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.momentum = momentum
        self._buffers = [
            torch.zeros_like(p) if momentum else None for p in self.parameters
        ]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient and forget the gradients."""
        moved = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        sgd(
            [self.parameters[i] for i in moved],
            [gradient(self.parameters[i]) for i in moved],
            [self._buffers[i] for i in moved],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> list[dict[str, Tensor]]:
        """Return each parameter's buffer, as ``momentum_buffer``."""
        return [
            {} if buffer is None else {"momentum_buffer": buffer}
            for buffer in self._buffers
        ]


def gradient(parameter: Tensor) -> Tensor:
    """Return a parameter's gradient, zeros where the loss did not reach it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
