"""What an engine holds of weights, gradients and optimizer: one entry a back end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hansa.planner.setting import HALF, HEAP_BLOCK, WIDE, Setting
from hansa.planner.shape import ModelShape

BUCKET = 25 * 2**20
"""Bytes of a bucket in which torch's DDP lets gradients travel."""
MESSAGE = 64 * 2**20
"""Bytes of a message in which zero1 lets moved weights travel."""
DEEPSPEED_BUCKET = 50_000_000
"""Most numbers of a message of DeepSpeed's, as the worker sets it."""
DEEPSPEED_LIVE = 1_000_000_000
"""Most numbers that its stage 3 keeps whole (``stage3_max_live_parameters``)."""
_MOMENTS = {"adamw": 2, "sgd": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Bytes on the fullest rank.

    Attributes:
        weights: Between the passes.
        optimizer: Moments, and float32 weights where those of the module are not.
        early: Gradients in the forward pass: those of the passes before, and memory
            that is set aside.
        first: Gradients when the backward pass has come to the last layer.
        late: Gradients when the backward pass ends.
        final: Gradients in the optimizer's step.
        gathered: Weights of others that are here in the forward pass.
        moving: Those in the backward pass, and gradients on their way.
        step: Copies that the optimizer's step makes.
        offloaded: What is in the node's memory instead of the device's.
        scattered: What buffers come to on the processor, where blocks that were freed
            are hardly used again.
        block: A buffer that comes and goes with each layer.
    """

    weights: int
    optimizer: int
    early: int
    first: int
    late: int
    final: int
    gathered: int = 0
    moving: int = 0
    step: int = 0
    offloaded: int = 0
    scattered: int = 0
    block: int = 0


def hold(shape: ModelShape, setting: Setting) -> Held:
    """Return what the engine of `setting.sharding` holds of the model."""
    return _ENGINES[setting.sharding](_Numbers(shape, setting))


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Sizes that several back ends have in common, in bytes over all ranks."""

    shape: ModelShape
    setting: Setting

    @property
    def mixed(self) -> bool:
        """Whether the trained weights are bfloat16 with masters in float32."""
        return self.setting.precision == "mixed"

    @property
    def again(self) -> bool:
        """Whether a step has several passes, so that gradients are summed up."""
        return self.setting.accumulation > 1

    @property
    def width(self) -> int:
        """Bytes of a gradient; adapters to a model in bfloat16 are float32."""
        wide = self.shape.adapters is not None and not self.mixed
        return WIDE if wide else self.setting.width

    @property
    def weights(self) -> int:
        """The module's weights."""
        frozen = self.shape.base_parameters if self.shape.adapters else 0
        return self.setting.width * frozen + self.width * self.shape.trained

    @property
    def gradients(self) -> int:
        """Gradients as they are computed."""
        return self.width * self.shape.trained

    @property
    def sums(self) -> int:
        """Gradients in float32, which those of "mixed" are added up in."""
        return WIDE * self.shape.trained

    @property
    def optimizer(self) -> int:
        """Moments, and masters where there are any."""
        moments = _MOMENTS[self.setting.optimizer]
        if self.mixed:
            return (1 + moments) * WIDE * self.shape.trained
        return moments * self.width * self.shape.trained

    @property
    def embedding(self) -> int:
        """The gradient of the embedding, the largest of all."""
        if self.shape.adapters is not None:
            return 0
        return self.width * self.shape.vocabulary * self.shape.hidden

    @property
    def first(self) -> int:
        """The gradient of the head, which comes before the last layer's."""
        return self.embedding

    @property
    def double(self) -> int:
        """What there is beside the sum when the embedding has its gradient.

        Where it is the head, too, both gradients and what they add up to.
        """
        return 2 * self.embedding if self.shape.tied else 0

    def part(self, size: int) -> int:
        """Return a rank's part of what is spread."""
        return -(-size // self.setting.ranks)


def _none(n: _Numbers) -> Held:
    summed = n.sums if n.mixed else n.gradients
    early = summed if n.again else 0
    # A first gradient becomes the sum; others are added to it, one by one.
    arriving = n.gradients if n.mixed or not n.again else n.embedding
    return Held(
        weights=n.weights,
        optimizer=n.optimizer,
        early=early,
        first=early + n.first,
        late=early + arriving + n.double,
        final=summed,
    )


def _ddp(n: _Numbers) -> Held:
    """Gradients have their memory, in buckets, from the start.

    Those of all passes but the last are beside them.
    """
    sums = n.sums if n.mixed else 0
    early = n.gradients + _before(n, n.sums)
    late = n.gradients + (sums or _before(n, 0))
    return Held(
        weights=n.weights,
        optimizer=n.optimizer,
        early=early,
        first=early + n.first,
        late=late + n.double + n.embedding,
        final=late,
        moving=0 if n.width == WIDE else 4 * BUCKET,
        # The sum of a bucket, and in "mixed" that of the passes before as well.
        scattered=n.sums if n.width < WIDE and (n.again or not n.mixed) else 0,
    )


def _before(n: _Numbers, sums: int) -> int:
    """Return the gradients of the passes before, beside DDP's buckets."""
    if not n.again:
        return 0
    return sums if n.mixed else n.gradients


def _zero1(n: _Numbers) -> Held:
    """As DDP, but a rank keeps only its rows of the sums in float32."""
    sums = n.part(n.sums) if n.mixed else 0
    early = n.gradients + _before(n, sums)
    late = n.gradients + (sums or _before(n, 0))
    return Held(
        weights=n.weights,
        optimizer=n.part(n.optimizer),
        early=early,
        first=early + n.first,
        late=late + n.double + n.embedding,
        final=late,
        moving=0 if n.width == WIDE else 4 * BUCKET,
        step=min(MESSAGE, n.part(n.weights)),
        scattered=n.sums if n.width < WIDE else 0,
    )


def _fsdp(n: _Numbers) -> Held:
    """Sharded weights are the masters; a layer and the next one are whole."""
    width = HALF if n.setting.precision == "bfloat16" else WIDE
    frozen = n.shape.base_parameters if n.shape.adapters else 0
    compute = n.setting.width
    layer = compute * n.shape.layer_parameters
    outer = compute * n.shape.outer_parameters
    gradients = n.part(width * n.shape.trained)
    early = gradients if n.again else 0
    reduced = WIDE * n.shape.layer_parameters if n.shape.adapters is None else 0
    held = Held(
        weights=n.part(width * n.shape.trained + compute * frozen),
        optimizer=n.part(_MOMENTS[n.setting.optimizer] * width * n.shape.trained),
        early=early,
        first=early + n.first,
        late=gradients + n.double + n.embedding,
        final=gradients,
        gathered=outer + 2 * layer,
        moving=outer + 2 * layer + reduced,
        scattered=(2 if n.again else 1) * compute * n.shape.parameters
        + compute * n.shape.trained
        + (n.sums if reduced < HEAP_BLOCK else max(reduced, 2 * outer)),
        block=layer,
    )
    if n.setting.host or not n.setting.cpu_offload:
        return held
    return replace(
        held,
        weights=0,
        optimizer=0,
        early=0,
        first=n.first,
        late=n.double + n.embedding,
        final=0,
        offloaded=held.weights + held.optimizer + gradients,
    )


def _deepspeed_1(n: _Numbers) -> Held:
    """DeepSpeed sums gradients in float32 beside the weights, all of them."""
    held = _deepspeed_2(n)
    message = WIDE * min(DEEPSPEED_BUCKET, n.shape.trained)
    return replace(
        held,
        early=n.sums,
        first=n.sums + n.first,
        late=n.sums + n.double + n.embedding,
        final=n.sums if n.mixed else n.sums + n.part(n.sums),
        moving=message,
        scattered=message,
    )


def _deepspeed_2(n: _Numbers) -> Held:
    """Always with masters, also of float32 weights; messages have a fixed size."""
    numbers = min(DEEPSPEED_BUCKET, n.shape.trained)
    message = numbers * (WIDE if n.width == WIDE else n.width + WIDE)
    sums = n.part(n.sums)
    return Held(
        weights=n.weights,
        optimizer=n.part((1 + _MOMENTS["adamw"]) * WIDE * n.shape.trained),
        early=sums,
        first=sums + n.first,
        late=sums + n.double + n.embedding,
        final=2 * sums,
        moving=message,
        step=numbers * n.width,
        # Fitted: in "mixed" the float32 part of the message leaves room for the sums.
        scattered=message + (0 if n.mixed else sums),
    )


def _deepspeed_3(n: _Numbers) -> Held:
    """The weights, too; some of them stay whole for a while, as many as it allows."""
    held = _deepspeed_2(n)
    whole = n.setting.width * min(DEEPSPEED_LIVE, n.shape.parameters)
    messages = 3 * WIDE * min(DEEPSPEED_BUCKET, n.shape.trained)
    return replace(
        held,
        weights=n.part(held.weights),
        final=n.part(n.sums),
        gathered=whole,
        moving=whole + messages,
        scattered=whole + messages,
    )


_ENGINES: dict[str, Callable[[_Numbers], Held]] = {
    "none": _none,
    "ddp": _ddp,
    "zero1": _zero1,
    "fsdp": _fsdp,
    "deepspeed-1": _deepspeed_1,
    "deepspeed-2": _deepspeed_2,
    "deepspeed-3": _deepspeed_3,
}
