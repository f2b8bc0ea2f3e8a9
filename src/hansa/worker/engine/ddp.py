"""Each rank has all of the model and of the optimizer; gradients are summed."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hansa.worker.engine.whole import Whole

Future = torch.futures.Future[Tensor]


class Replicated(Whole):
    """The `Engine` on torch's `DistributedDataParallel`.

    Gradients travel in the last pass of a step, bucket by bucket while the rest is
    still computed. They are summed in float32 whatever they are computed in.
    """

    module: DistributedDataParallel

    def _wrap_settled(self, model: nn.Module) -> nn.Module:
        index = None if self.device.type == "cpu" else [self.device]
        with warnings.catch_warnings():
            # The option's new name is unknown to older versions of torch.
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            wrapped = DistributedDataParallel(
                model,
                device_ids=index,
                broadcast_buffers=False,  # it would do so in evaluations, too
                gradient_as_bucket_view=True,
                find_unused_parameters=self.recipe.may_skip,
            )
        # A weak reference, as what the library holds is out of sight of Python's
        # collector. It looks at annotations, which are but strings here: a lambda.
        wrapped.register_comm_hook(
            weakref.ref(self), lambda engine, bucket: engine().reduce(bucket)
        )
        return wrapped

    def words(self) -> Mapping[str, str]:
        """Return what is in force."""
        return {"sharding": "ddp", **super().words()}

    def begin(self, *, last: bool) -> None:
        """Let gradients travel in the last pass only."""
        # What its `no_sync` sets; that is a context, which can't span two calls.
        self.module.require_backward_grad_sync = last

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`; with `last`, sum all over the ranks."""
        torch.autograd.backward(loss)
        if self.recipe.precision != "mixed":
            return
        if not last:
            self._widen()
            return
        for parameter in self._trained():
            parameter.grad = None  # its sum is in float32

    def reduce(self, bucket: Any) -> Future:
        """Sum a bucket of gradients over the ranks."""
        buffer = bucket.buffer()
        if self.recipe.precision == "mixed":
            return self._reduce_wide(bucket)
        wide = buffer.to(torch.promote_types(buffer.dtype, torch.float32))
        return _summed(wide, buffer)

    def _reduce_wide(self, bucket: Any) -> Future:
        """Sum in float32 with the passes before; the sum stays in float32."""
        buffer = bucket.buffer()
        wide = buffer.float()
        for parameter, part in parts_of(bucket, wide):
            before = self._wide.get(id(parameter))
            if before is not None:
                part.add_(before)
            self._wide[id(parameter)] = part
        return _summed(wide, buffer)


def parts_of(bucket: Any, wide: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter of a bucket with its gradient in a copy of the buffer."""
    first = bucket.buffer().storage_offset()
    for parameter, there in zip(bucket.parameters(), bucket.gradients(), strict=True):
        start = there.storage_offset() - first
        yield parameter, wide.as_strided(there.size(), there.stride(), start)


def _summed(wide: Tensor, buffer: Tensor) -> Future:
    """Sum `wide` over the ranks, in place; the result, in the buffer, comes later."""

    def taken(done: Future) -> Tensor:
        done.value()
        return buffer if wide is buffer else buffer.copy_(wide)

    work = distributed.all_reduce(wide, async_op=True)
    future: Future = work.get_future().then(taken)
    return future
