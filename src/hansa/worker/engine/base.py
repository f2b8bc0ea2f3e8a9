"""What every back end does: hold a model and its optimizer, whole or in parts.

A trainer calls `module` in place of its model, `backward` for each pass and `step` once
all passes are done. It never asks which back end it has.

The numbers of a tensor lie in *pieces*: rows ``start`` to ``stop`` of its first axis on
one rank. That is what a checkpoint holds, so it can be restored on another number of
ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from hansa.worker.base import Array, Correction, TensorReader
from hansa.worker.team import Team


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train, the same on all ranks.

    Attributes:
        sharding: The back end: "none", "ddp", "fsdp", "zero1", "deepspeed-1" to "-3".
        precision: dtype of the arithmetic; "mixed": bfloat16 with float32 weights in
            the optimizer.
        optimizer: "adamw" or "sgd".
        weight_decay: The optimizer's.
        clip: Largest norm of the whole gradient; None: no limit.
        activation_checkpointing: Whether each layer's activations are computed anew
            in the backward pass.
        cpu_offload: Whether weights and optimizer stay in the node's memory (fsdp).
        momentum: Of "sgd".
        fused: Whether the optimizer's arithmetic is this package's quick one, or that
            of torch.optim's classes, which rounds differently, knows momentum and
            leaves parameters without a gradient alone.
        adapter_rank: Components of LoRA's adapters that are trained; None: all.
        may_skip: Whether a pass may leave out parameters, as mixtures of experts do; to
            find out which costs ddp and zero1 a look at all of the pass.
        seed: Reseeds the generators where a checkpoint has none for this rank.
    """

    sharding: str
    precision: Literal["float32", "bfloat16", "mixed"]
    optimizer: Literal["adamw", "sgd"]
    weight_decay: float = 0.0
    clip: float | None = None
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    momentum: float = 0.0
    fused: bool = True
    adapter_rank: int | None = None
    may_skip: bool = False
    seed: int = 0


class Engine(Protocol):
    """A model over all ranks of a team, with its optimizer.

    Built as ``Engine(model, federated, recipe, team, device)``: `model` may have
    parameters on the meta device where `load` follows; `federated` is what is
    exchanged, by the name that it has in a version: parameters, of which those that
    require a gradient are trained, and buffers. Every method is called on all ranks,
    also on one that has no examples: all do the same number of passes.

    A step is: for each pass `begin`, the model's forward pass by `module`, `backward`;
    then `step`.

    Attributes:
        module: Called like the model.
        steps: Optimizer steps done.
    """

    module: nn.Module
    steps: int

    def words(self) -> Mapping[str, str]:
        """Return what is in force, read off the objects and not off the recipe.

        Keys: sharding, wrapper (class of `module`), optimizer (class), precision,
        device.
        """
        ...

    def load(self, read: TensorReader) -> None:
        """Take all federated tensors from `read`; each rank reads what it holds.

        Raises:
            WorkerError: A tensor is missing or has another shape.
        """
        ...

    def correct(self, correction: Correction) -> None:
        """Take up what the order adds to every gradient; called after `load`.

        Raises:
            SpecError: This back end can't do that.
        """
        ...

    def begin(self, *, last: bool) -> None:
        """Say that a pass with gradients follows; `last` is as in `backward`."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`, the rank's part of the sum over all ranks.

        Gradients are summed over ranks and passes, not averaged.

        Args:
            loss: A scalar.
            last: Whether it is the last pass of the step: gradients may wait for it
                before they travel.
        """
        ...

    def step(self, lr: float) -> float:
        """Clip, move the weights, forget the gradients.

        Returns:
            The norm of the whole gradient before it was clipped; NaN if it has no
            limit and was not computed; infinite if it is no number: then neither
            weights nor optimizer were moved.
        """
        ...

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors, sorted by name, one at a time.

        They are float32 (float64 if they are trained in it), with "mixed" those that
        the optimizer moves. On ranks above 0 the arrays may be empty.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's pieces of weights and optimizer, and its generators."""
        ...

    def restore(self, directory: Path, *, optimizer_only: bool = False) -> None:
        """Take what `save` wrote, on this number of ranks or another.

        Args:
            directory: Holds the files of all ranks.
            optimizer_only: Take the optimizer's moments alone, for an order that goes
                on from another version; `steps` stays as it is.

        Raises:
            WorkerError: It is of another model or optimizer, incomplete or damaged.
        """
        ...


Build = type[Engine]
Parameters = Mapping[str, Tensor]
__all__ = ["Array", "Build", "Engine", "Parameters", "Recipe", "Team"]
