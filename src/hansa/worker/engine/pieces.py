"""Rows of tensors: which of them a rank holds, and how to see and gather them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hansa.worker.team import Team


@dataclass(slots=True)
class Piece:
    """Rows of one federated tensor on this rank.

    A tensor without axes counts as one row. A rank may hold no row of a tensor.

    Attributes:
        name: The tensor's name in a version.
        shape: Of the whole tensor.
        rows: The first row, and the one after the last.
        weight: These rows as the model computes with them; a view.
        master: These rows as the optimizer moves them: `weight` itself, or a copy in
            float32.
        trained: Whether the optimizer moves them.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int]
    weight: Tensor
    master: Tensor
    trained: bool


def count(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a tensor."""
    return shape[0] if shape else 1


def share(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return a rank's rows where they are spread, as torch's `chunk` divides them.

    All ranks have as many but for the last ones, which may have fewer or none.
    """
    size = -(-rows // world)
    return min(rank * size, rows), min((rank + 1) * size, rows)


def by_rows(tensor: Tensor) -> Tensor:
    """Return a view with at least one axis, which shares the numbers."""
    found = tensor.detach()
    return found if found.dim() else found.view(1)


Place = tuple[nn.Module, str]
"""A module, and the name of its own parameter or buffer."""


def places(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Return where each tensor is; back ends may put another object in its place."""
    found: dict[int, Place] = {}
    for module in model.modules():
        own = [*module.named_parameters(recurse=False)]
        for name, tensor in [*own, *module.named_buffers(recurse=False)]:
            found.setdefault(id(tensor), (module, name))
    return {name: found[id(tensor)] for name, tensor in sorted(tensors.items())}


def gathered(piece: Piece, team: Team) -> Tensor | None:
    """Return a whole tensor on rank 0, where its rows are spread; None elsewhere.

    Called on all ranks.
    """
    size = -(-count(piece.shape) // team.world)
    here = by_rows(piece.master)
    # All ranks send as much, as not every library can send unequal parts.
    sent = here.new_zeros((size, *piece.shape[1:]))
    sent[: len(here)] = here
    if team.rank:
        torch.distributed.gather(sent, dst=0)
        return None
    whole = sent.new_empty((team.world, *sent.shape))
    torch.distributed.gather(sent, list(whole.unbind()), dst=0)
    return whole.flatten(0, 1)[: count(piece.shape)].reshape(piece.shape)
