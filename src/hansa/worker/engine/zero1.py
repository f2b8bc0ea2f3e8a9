"""Each rank has all weights, but only its rows of the optimizer's state and masters.

Stage 1 of ZeRO (Rajbhandari et al., arXiv 1910.02054). Gradients are summed as with
DDP, by DDP; each rank then moves its rows, and sends them to the others. With "mixed"
they travel in each pass, so that no rank has to keep the float32 sums of them all.

torch's ``ZeroRedundancyOptimizer`` does not serve: it spreads whole parameters, so
that one rank gets all of an embedding; it has no float32 masters for weights in
bfloat16; and its state is collected by pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from hansa.worker.engine.ddp import Future, Replicated, parts_of
from hansa.worker.engine.pieced import Spread
from hansa.worker.engine.pieces import by_rows, share

BYTES = 64 * 1024 * 1024
"""Size of a message of weights; a larger tensor goes alone."""


class SpreadOptimizer(Spread, Replicated):
    """The `Engine` of ZeRO stage 1."""

    def words(self) -> Mapping[str, str]:
        """Return what is in force."""
        return {**super().words(), "sharding": "zero1"}

    def _rows(self, tensor: Tensor) -> tuple[int, int]:
        rows = len(by_rows(tensor))
        if not tensor.requires_grad:
            return 0, rows
        return share(rows, self.team.rank, self.team.world)

    def begin(self, *, last: bool) -> None:
        """Let gradients travel."""
        super().begin(last=last or self.recipe.precision == "mixed")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`."""
        super().backward(loss, last=last or self.recipe.precision == "mixed")

    def _reduce_wide(self, bucket: Any) -> Future:
        """Sum a pass over the ranks in float32, and keep this rank's rows of it."""
        buffer: Tensor = bucket.buffer()
        wide = buffer.float()
        parts = [
            (parameter, by_rows(part)[slice(*self._rows(parameter))])
            for parameter, part in parts_of(bucket, wide)
        ]

        def kept(done: Future) -> Tensor:
            done.value()
            for parameter, rows in parts:
                if id(parameter) in self._wide:
                    self._wide[id(parameter)] += rows
                else:
                    self._wide[id(parameter)] = rows.clone()
            return buffer

        work = distributed.all_reduce(wide, async_op=True)
        future: Future = work.get_future().then(kept)
        return future

    def _take_gradients(self) -> None:
        if self.recipe.precision != "mixed":
            super()._take_gradients()
            return
        for piece in self._moved.values():
            rows = self._wide.pop(id(self._tensor(piece.name)), None)
            if rows is not None:
                piece.master.grad = rows.reshape(piece.master.shape)
        self._wide.clear()

    @torch.no_grad()
    def _publish(self) -> None:
        super()._publish()
        tensors = [by_rows(self._tensor(p.name)) for p in self.pieces if p.trained]
        for owner in range(self.team.world):
            rows = [share(len(tensor), owner, self.team.world) for tensor in tensors]
            parts = [t[slice(*of)] for t, of in zip(tensors, rows, strict=True)]
            for group in _messages(parts):
                self._send(group, owner)

    def _send(self, parts: list[Tensor], owner: int) -> None:
        """Bring one rank's rows to all others, as one message."""
        message = torch.cat([part.reshape(-1) for part in parts])
        distributed.broadcast(message, src=owner)
        if owner == self.team.rank:
            return
        sizes = [part.numel() for part in parts]
        for part, value in zip(parts, torch.split(message, sizes), strict=True):
            part.copy_(value.view(part.shape))


def _messages(parts: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parts of one dtype that go together."""
    group: list[Tensor] = []
    size = 0
    for part in sorted(parts, key=lambda part: str(part.dtype)):
        if group and (part.dtype != group[0].dtype or size + part.nbytes > BYTES):
            yield group
            group, size = [], 0
        if part.numel():
            group.append(part)
            size += part.nbytes
    if group:
        yield group
