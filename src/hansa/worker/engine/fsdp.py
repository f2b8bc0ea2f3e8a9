"""Weights, gradients and optimizer are spread: torch's FSDP2 (`fully_shard`).

A layer's weights are whole only while it computes; so no rank ever holds the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from hansa.core.errors import SpecError
from hansa.worker.engine.layers import checkpoint_activations, layers_of
from hansa.worker.engine.pieced import Spread
from hansa.worker.engine.pieces import Piece, by_rows, count, share


class Sharded(Spread):
    """The `Engine` on `fully_shard`: each decoder layer is a unit, the rest another.

    With "mixed", the sharded weights are the masters: they are gathered in bfloat16.
    Gradients are spread after each pass, not after the last one only: waiting would
    keep the whole gradient on every rank.
    """

    def _wrap(self, model: nn.Module) -> nn.Module:
        mixed = self.recipe.precision == "mixed"
        if mixed:
            _masters_in_float32(model)
        if self.recipe.activation_checkpointing:
            checkpoint_activations(model)
        mesh = init_device_mesh(self.device.type, (self.team.world,))
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if mixed else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for unit in (*layers_of(model), model):
            fully_shard(
                unit, mesh=mesh, mp_policy=precision, offload_policy=self._offload()
            )
        if self.recipe.may_skip:
            _take_part(model)
        self._fill_empty(model)
        self._sharded = {
            name: tensor
            for name, (module, attribute) in self._places.items()
            if isinstance(tensor := getattr(module, attribute), DTensor)
        }
        return model

    def _offload(self) -> OffloadPolicy:
        if not self.recipe.cpu_offload:
            return OffloadPolicy()
        return CPUOffloadPolicy(pin_memory=self.device.type != "cpu")

    def _fill_empty(self, model: nn.Module) -> None:
        """Give memory to this rank's rows of parameters on the meta device."""
        device = torch.device("cpu") if self.recipe.cpu_offload else self.device

        def filled(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

        if any(parameter.is_meta for parameter in model.parameters()):
            # `to_empty` would empty the buffers, too.
            model._apply(filled)  # type: ignore[no-untyped-call]
        if self.device.type != "cpu":
            for module in model.modules():
                for name, buffer in [*module.named_buffers(recurse=False)]:
                    setattr(module, name, buffer.to(self.device))

    def words(self) -> Mapping[str, str]:
        """Return what is in force."""
        offload = {"offload": "cpu"} if self.recipe.cpu_offload else {}
        return {"sharding": "fsdp", **super().words(), **offload}

    def _precision(self) -> str:
        return "mixed" if self.recipe.precision == "mixed" else super()._precision()

    def _piece(self, name: str) -> Piece:
        if name in self._sharded:
            tensor: Tensor = self._sharded[name]
            rows = share(count(tuple(tensor.shape)), self.team.rank, self.team.world)
            local = _local(self._sharded[name]).requires_grad_(tensor.requires_grad)
        else:
            module, attribute = self._places[name]
            tensor = local = getattr(module, attribute)
            rows = 0, len(by_rows(tensor))
        return Piece(
            name=name,
            shape=tuple(tensor.shape),
            rows=rows,
            weight=local,
            master=local,
            trained=tensor.requires_grad,
        )

    def is_spread(self, piece: Piece) -> bool:
        """Tell whether ranks hold different rows of a tensor."""
        return piece.name in self._sharded

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`, and spread it."""
        # The library averages; in float32 a small factor costs no precision.
        torch.autograd.backward(loss * self.team.world)

    def _take_gradients(self) -> None:
        self._refresh()
        for piece in self._moved.values():
            gradient = self._sharded[piece.name].grad
            if gradient is not None:
                piece.master.grad = _local(cast(DTensor, gradient))
        if self.recipe.may_skip and not self.recipe.fused:
            self._leave_unused()

    def _leave_unused(self) -> None:
        """Take the gradient from parameters that no rank has used.

        Theirs is zero, and some optimizers would let them decay.
        """
        used = torch.zeros(len(self._sharded), dtype=torch.uint8)
        for index, name in enumerate(self._sharded):
            piece = self._moved.get(name)
            if piece is not None and piece.master.grad is not None:
                used[index] = bool(piece.master.grad.any())
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        for name, is_used in zip(self._sharded, used.tolist(), strict=True):
            if not is_used and name in self._moved:
                self._moved[name].master.grad = None

    def _forget(self) -> None:
        for tensor in self._sharded.values():
            tensor.grad = None

    def _refresh(self) -> None:
        """See to it that pieces are what the library spreads from now on.

        An evaluation leaves the outermost unit whole, and the first pass may move rows
        to other memory.
        """
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        super()._refresh()
        for piece in self.pieces:
            if piece.name in self._sharded:
                local = _local(self._sharded[piece.name])
                if local.data_ptr() != piece.master.data_ptr():
                    piece.master.data = local


def _take_part(model: nn.Module) -> None:
    """Let each rank send zeros for what it leaves out in a pass.

    Without that ranks that use other parameters add up what does not belong together.
    """
    take_part = getattr(model, "set_reduce_scatter_unused_params", None)
    if take_part is None:
        raise SpecError(
            f"fsdp of torch {torch.__version__} can't train a model whose passes may "
            "leave out parameters.",
            hint="Set work.sharding: zero1 or ddp, or install a newer torch; 2.13 can.",
        )
    take_part(True)


def _masters_in_float32(model: nn.Module) -> None:
    """Make what is trained float32, what is frozen bfloat16."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
            parameter.data = parameter.data.to(wanted)


def _local(tensor: DTensor) -> Tensor:
    return tensor.to_local().detach()
