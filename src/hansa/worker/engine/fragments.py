"""What a rank holds of each tensor under DeepSpeed: numbers ``start`` to ``stop``.

DeepSpeed lays all tensors end to end and cuts the whole into equal parts (ZeRO 1 and
2), or cuts each tensor (ZeRO 3), in the middle of a row if need be. Checkpoints are in
rows, so that other back ends can read them: here one becomes the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from hansa.worker.engine.base import Recipe
from hansa.worker.engine.pieces import Piece, count, share
from hansa.worker.engine.state import STEP, WEIGHT
from hansa.worker.team import Team

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each number."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """The part of a trained tensor that this rank's optimizer moves.

    Attributes:
        shape: Of the whole tensor.
        start: The first number, where the tensor's numbers lie in a row.
        values: float32 weights and moments of these numbers, flat views, by kind.
    """

    shape: tuple[int, ...]
    start: int
    values: Mapping[str, Tensor]

    @property
    def stop(self) -> int:
        """The number after the last one."""
        return self.start + self.values[WEIGHT].numel()

    @property
    def rows(self) -> tuple[int, int]:
        """The rows that these numbers are in: the first, and the one after the last."""
        width = math.prod(self.shape[1:])
        if self.start == self.stop or not width:
            return 0, 0
        return self.start // width, -(-self.stop // width)

    def part(self, rows: Tensor) -> Tensor:
        """Return these numbers out of the tensor's `rows`, which have them."""
        skipped = self.start - self.rows[0] * math.prod(self.shape[1:])
        return rows.reshape(-1)[skipped : skipped + self.stop - self.start]

    def whole(self, kind: str) -> Tensor:
        """Return the whole tensor, to which each rank gives its part."""
        here = self.values[kind]
        all_of_it = here.new_zeros(math.prod(self.shape))
        all_of_it[self.start : self.stop] = here
        distributed.all_reduce(all_of_it)
        return all_of_it.view(self.shape)


def fragment_of(parameter: nn.Parameter, engine: Any, rank: int) -> Fragment:
    """Return what this rank holds of a parameter of a DeepSpeed engine.

    Args:
        parameter: It is trained.
        engine: A ``DeepSpeedEngine`` whose optimizer has its state.
        rank: This rank.
    """
    states = engine.basic_optimizer.state
    if hasattr(parameter, "ds_id"):
        return _of_tensor(parameter, rank)
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    shape = tuple(parameter.shape)
    if mapping is None:  # all of it is on other ranks
        nothing = torch.zeros(0, device=parameter.device)
        return Fragment(shape, 0, dict.fromkeys((WEIGHT, *MOMENTS), nothing))
    address = mapping.get_hp_fragment_address()
    (flat,) = states
    values = {
        kind: states[flat][kind].narrow(0, address.start, address.numel)
        for kind in MOMENTS
    }
    weight = mapping.get_hp_fragment().detach()
    return Fragment(
        shape, mapping.lp_fragment_address.start, {WEIGHT: weight, **values}
    )


def _of_tensor(parameter: Any, rank: int) -> Fragment:
    """Return a part of a tensor that is cut by itself; the last part is padded."""
    from deepspeed.utils import (  # noqa: PLC0415 - an extra
        safe_get_local_fp32_param,
        safe_get_local_optimizer_state,
    )

    size = parameter.ds_tensor.numel()
    start = min(rank * size, parameter.ds_numel)
    there = min(size, parameter.ds_numel - start)
    values = {WEIGHT: safe_get_local_fp32_param(parameter).detach()}
    for kind in MOMENTS:
        values[kind] = safe_get_local_optimizer_state(parameter, kind)
    cut = {kind: value[:there] for kind, value in values.items()}
    return Fragment(tuple(parameter.ds_shape), start, cut)


@dataclass(kw_only=True, slots=True)
class Rows:
    """Rows of all tensors, as `save_state` and `restore_state` take them.

    Each of the ranks has some rows of each trained tensor in memory of its own, and all
    of each other tensor.
    """

    recipe: Recipe
    team: Team
    device: torch.device
    steps: int
    pieces: list[Piece] = field(default_factory=list)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    other: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer_name: str = "AdamW"

    def states(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the optimizer's state by name."""
        return self.moments

    def buffers(self) -> Mapping[str, Tensor]:
        """Return the model's state beside its parameters."""
        return self.other

    def is_spread(self, piece: Piece) -> bool:
        """Tell whether ranks hold different rows of a tensor."""
        return piece.trained

    def step(self) -> float:
        """Return how many steps the optimizer has done with what this rank has."""
        moved = [piece.name for piece in self.pieces if piece.trained]
        return max(float(self.moments[name][STEP]) for name in moved)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor that is not trained, which all ranks have."""
        shape = tuple(tensor.shape)
        self.pieces.append(
            _piece(name, shape, (0, count(shape)), tensor, trained=False)
        )

    def add_written(self, name: str, fragment: Fragment, step: float) -> None:
        """Take this rank's share of the rows, for which all ranks give their parts.

        `step` is how many steps the optimizer has done, in orders before, too.
        """
        rows = share(count(fragment.shape), self.team.rank, self.team.world)
        held = {
            kind: fragment.whole(kind)
            .view(-1, *fragment.shape[1:])[slice(*rows)]
            .clone()
            for kind in (WEIGHT, *MOMENTS)
        }
        self._add(name, fragment, rows, held, step)

    def add_empty(self, name: str, fragment: Fragment) -> None:
        """Make room for the rows that a fragment is in."""
        first, last = fragment.rows
        held = {
            kind: value.new_zeros(last - first, *fragment.shape[1:])
            for kind, value in fragment.values.items()
        }
        self._add(name, fragment, (first, last), held, 0.0)

    def _add(
        self,
        name: str,
        fragment: Fragment,
        rows: tuple[int, int],
        held: dict[str, Tensor],
        step: float,
    ) -> None:
        weight = held.pop(WEIGHT)
        self.pieces.append(_piece(name, fragment.shape, rows, weight, trained=True))
        self.moments[name] = {STEP: torch.tensor(step), **held}


def _piece(
    name: str,
    shape: tuple[int, ...],
    rows: tuple[int, int],
    tensor: Tensor,
    *,
    trained: bool,
) -> Piece:
    return Piece(
        name=name, shape=shape, rows=rows, weight=tensor, master=tensor, trained=trained
    )


def moments_of(flats: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Return AdamW's state before its first step, for each tensor that it moves."""
    return [
        {
            STEP: torch.zeros((), device=flat.device),
            **{kind: torch.zeros_like(flat) for kind in MOMENTS},
        }
        for flat in flats
    ]
