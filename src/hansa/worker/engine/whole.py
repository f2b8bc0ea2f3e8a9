"""Back ends where every rank has the whole model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hansa.worker.engine.layers import checkpoint_activations
from hansa.worker.engine.pieced import Pieced
from hansa.worker.engine.pieces import Piece, by_rows, count
from hansa.worker.trainers.empty import allocate


class Whole(Pieced):
    """A model whose parameters are as it was built; a base class.

    With "mixed", each pass's gradients go into a sum in float32 at once, as sums in
    bfloat16 would lose what is small.
    """

    def _wrap(self, model: nn.Module) -> nn.Module:
        settle(model, self.device, self._compute_dtype())
        if self.recipe.activation_checkpointing:
            checkpoint_activations(model)
        self._wide: dict[int, Tensor] = {}
        return self._wrap_settled(model)

    def _wrap_settled(self, model: nn.Module) -> nn.Module:
        """Return the module that is called like the model, which is on its device."""
        return model

    def _compute_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.recipe.precision == "mixed" else None

    def _piece(self, name: str) -> Piece:
        tensor = self._tensor(name)
        rows = self._rows(tensor)
        weight = tensor
        if rows != (0, count(tuple(tensor.shape))):
            weight = by_rows(tensor)[slice(*rows)].requires_grad_(tensor.requires_grad)
        return Piece(
            name=name,
            shape=tuple(tensor.shape),
            rows=rows,
            weight=weight,
            master=self._master(weight),
            trained=tensor.requires_grad,
        )

    def _rows(self, tensor: Tensor) -> tuple[int, int]:
        """Return which rows this rank's optimizer moves."""
        return 0, count(tuple(tensor.shape))

    def _master(self, weight: Tensor) -> Tensor:
        if self.recipe.precision != "mixed" or not weight.requires_grad:
            return weight
        return weight.detach().float().requires_grad_()

    def _tensor(self, name: str) -> Tensor:
        module, attribute = self._places[name]
        found: Tensor = getattr(module, attribute)
        return found

    def _trained(self) -> Iterator[nn.Parameter]:
        for name in self._places:
            tensor = self._tensor(name)
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                yield tensor

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`."""
        torch.autograd.backward(loss)
        if self.recipe.precision == "mixed":
            self._widen()

    @torch.no_grad()
    def _widen(self) -> None:
        """Add the gradients of a pass to their sums."""
        for parameter in self._trained():
            if parameter.grad is None:
                continue
            key = id(parameter)
            if key in self._wide:
                self._wide[key] += parameter.grad
            else:
                self._wide[key] = parameter.grad.float()
            parameter.grad = None

    def _take_gradients(self) -> None:
        for piece in self._moved.values():
            parameter = self._tensor(piece.name)
            if piece.master is parameter:
                continue
            wide = self._wide.pop(id(parameter), parameter.grad)
            if wide is not None:
                part = by_rows(wide)[slice(*piece.rows)]
                piece.master.grad = part.reshape(piece.master.shape)
        self._wide.clear()

    @torch.no_grad()
    def _publish(self) -> None:
        for piece in self.pieces:
            if piece.master is not piece.weight:
                piece.weight.copy_(piece.master)


@torch.no_grad()
def settle(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """Bring a model to a device; parameters on the meta device get memory there.

    Args:
        model: Changed in place.
        device: Where it trains.
        dtype: Floating parameters are converted to it; None: they stay as they are.
            Buffers stay in any case: angles and the like are tables, made once.
    """
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    allocate(model, device)
