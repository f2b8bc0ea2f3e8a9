"""AdamW on torch's own kernels, without the import that torch's class brings.

The first use of a ``torch.optim.Optimizer`` imports torch's compiler, 1.4 s of
processor time in every job. The arithmetic is torch's functional AdamW; the state
has the layout of the class's `state_dict`, so checkpoints are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Adam with decoupled weight decay, over all parameters alike.

    Args:
        parameters: What is trained; their order is that of the state.
        weight_decay: Strength of the decay.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, weight_decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self._steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self._moments = [
            [torch.zeros_like(p) for p in self.parameters] for _ in _MOMENTS
        ]

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return int(self._steps[0].item()) if self._steps else 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter by its gradient and forget the gradients."""
        grads = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters
        ]
        adamw(
            list(self.parameters),
            grads,
            self._moments[0],
            self._moments[1],
            [],
            self._steps,
            foreach=False,
            fused=True,
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

    def state_dict(self) -> dict[str, Any]:
        """Return the state as ``torch.optim.AdamW`` lays it out."""
        state = {
            index: {"step": self._steps[index]}
            | {
                name: moment[index]
                for name, moment in zip(_MOMENTS, self._moments, strict=True)
            }
            for index in range(len(self.parameters))
        }
        group = {"weight_decay": self.weight_decay, "params": list(state)}
        return {"state": state, "param_groups": [group]}

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError: The state is of another optimizer.
        """
        for index in range(len(self.parameters)):
            entry = saved["state"][index]
            self._steps[index].copy_(entry["step"])
            for name, moment in zip(_MOMENTS, self._moments, strict=True):
                moment[index].copy_(entry[name])
