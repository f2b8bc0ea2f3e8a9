"""What torch's back ends have in common: steps, streaming and checkpoints over pieces.

Each rank's optimizer moves the pieces that the rank holds. A back end says which those
are, how gradients get to them, and how the moved weights get back to the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from hansa.worker.base import Array, Correction, TensorReader
from hansa.worker.engine.base import Parameters, Recipe
from hansa.worker.engine.optimizer import make_optimizer
from hansa.worker.engine.pieces import Piece, Place, gathered, places
from hansa.worker.engine.state import restore_state, save_state
from hansa.worker.engine.together import agreed
from hansa.worker.reading import read_rows
from hansa.worker.team import Team
from hansa.worker.trainers.corrected import Corrections
from hansa.worker.trainers.lora import only_first


class Pieced(ABC):
    """An `Engine` whose optimizer moves pieces; a base class.

    Attributes:
        module: Called like the model.
        pieces: What this rank holds of each federated tensor, sorted by name.
        steps: Optimizer steps done.
    """

    module: nn.Module

    def __init__(
        self,
        model: nn.Module,
        federated: Parameters,
        recipe: Recipe,
        team: Team,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.team = team
        self.device = device
        self.steps = 0
        self._places = places(model, federated)
        self.module = self._wrap(model)
        self._buffers = _buffers(model)
        self.pieces = [self._piece(name) for name in self._places]
        moved = [p for p in self.pieces if p.trained and p.master.numel()]
        self._moved = {piece.name: piece for piece in moved}
        self.optimizer = make_optimizer(recipe, (piece.master for piece in moved))
        self._corrections = Corrections({}, Correction())

    # What a back end decides.

    @abstractmethod
    def _wrap(self, model: nn.Module) -> nn.Module:
        """Return the module that is called like the model."""

    @abstractmethod
    def _piece(self, name: str) -> Piece:
        """Return what this rank holds of a tensor; the model is wrapped already."""

    @abstractmethod
    def _take_gradients(self) -> None:
        """Give each moved piece's master its gradient."""

    def _publish(self) -> None:  # noqa: B027 - may do nothing
        """Bring the masters' values to the model, on all ranks."""

    def _forget(self) -> None:
        """Forget the model's gradients."""
        for place in self._places.values():
            _at(place).grad = None

    def _refresh(self) -> None:
        """See to it that pieces are what the model computes with.

        A module may put another tensor in a buffer's place.
        """
        for piece in self.pieces:
            if not piece.trained and not self.is_spread(piece):
                piece.weight = piece.master = _at(self._places[piece.name])

    def begin(self, *, last: bool) -> None:  # noqa: B027 - may do nothing
        """Say that a pass with gradients follows."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`."""

    # What they have in common.

    def words(self) -> Mapping[str, str]:
        """Return what is in force."""
        return {
            "wrapper": type(self.module).__name__,
            "optimizer": self.optimizer_name,
            "precision": self._precision(),
            "device": self.device.type,
        }

    def load(self, read: TensorReader) -> None:
        """Take all federated tensors from `read`; each rank reads what it holds.

        Raises:
            WorkerError: A tensor is missing or has another shape, or another rank
                failed to read.
        """
        self._refresh()
        with agreed(self.team, "Loading the model"), torch.no_grad():
            for piece in self.pieces:
                rows = read_rows(read, piece.name, piece.shape, piece.rows)
                value = torch.from_numpy(rows)
                piece.master.copy_(value.reshape(piece.master.shape))
        self._publish()

    def correct(self, correction: Correction) -> None:
        """Take up the proximal term and the control variate; called after `load`.

        Raises:
            WorkerError: The control variate is of another model.
        """
        read = correction.control

        def rows(name: str) -> Array:
            piece = self._moved[name]
            part = read_rows(
                read or _nothing, name, piece.shape, piece.rows, of="control variate"
            )
            return part.reshape(tuple(piece.master.shape))

        here = Correction(
            lr_scale=correction.lr_scale,
            proximal=correction.proximal,
            control=rows if read is not None else None,
        )
        masters = {name: piece.master for name, piece in self._moved.items()}
        with agreed(self.team, "Reading the control variate"):
            self._corrections = Corrections(masters, here)

    def step(self, lr: float) -> float:
        """Clip, move the weights, forget the gradients; return the norm before that."""
        self._take_gradients()
        self._corrections.add_to_gradients()
        with self._trained_part():
            norm = self._clip()
            if self.recipe.clip is not None and not math.isfinite(norm):
                return self._stay()
            self.optimizer.step(lr)
        self._publish()
        self._forget()
        if self.team.world > 1:
            for buffer in self.buffers().values():
                torch.distributed.broadcast(buffer, src=0)
        self.steps += 1
        return norm

    def _stay(self) -> float:
        for piece in self._moved.values():
            piece.master.grad = None
        self._forget()
        return math.inf

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors, sorted by name, one at a time.

        Those that are spread are gathered on rank 0; elsewhere arrays are empty.
        """
        self._refresh()
        for piece in self.pieces:
            value = piece.master.detach()
            if self.is_spread(piece):
                found = gathered(piece, self.team)
                value = piece.master.new_empty(0) if found is None else found
            wide = torch.promote_types(value.dtype, torch.float32)
            yield piece.name, value.to("cpu", wide, copy=True).numpy()

    def save(self, directory: Path) -> None:
        """Write this rank's pieces of weights and optimizer, and its generators."""
        self._refresh()
        save_state(self, directory)

    def restore(self, directory: Path, *, optimizer_only: bool = False) -> None:
        """Take what `save` wrote, on this number of ranks or another.

        Raises:
            WorkerError: It is of another model or optimizer, incomplete or damaged.
        """
        self._refresh()
        with agreed(self.team, "Restoring the training state"):
            restore_state(self, directory, optimizer_only=optimizer_only)
        self._publish()

    @property
    def optimizer_name(self) -> str:
        """Class of the optimizer."""
        return type(self.optimizer).__name__

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's state of each moved piece, by its name."""
        return dict(zip(self._moved, self.optimizer.state(), strict=True))

    def buffers(self) -> dict[str, Tensor]:
        """Return the model's own state beside its parameters, by name."""
        return {name: _at(place) for name, place in self._buffers.items()}

    def is_spread(self, piece: Piece) -> bool:
        """Tell whether ranks hold different rows of a tensor, or none."""
        return False

    def _precision(self) -> str:
        trained = [piece for piece in self.pieces if piece.trained]
        if any(piece.weight.dtype != piece.master.dtype for piece in trained):
            return "mixed"
        sizes: dict[torch.dtype, int] = {}
        for parameter in self.module.parameters():
            sizes.setdefault(parameter.dtype, 0)
            sizes[parameter.dtype] += parameter.numel()
        # Adapters are float32 in a model of any dtype, and few.
        return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")

    def _trained_part(self) -> AbstractContextManager[None]:
        rank = self.recipe.adapter_rank
        if rank is None:
            return nullcontext()
        masters = {name: piece.master for name, piece in self._moved.items()}
        starts = {name: piece.rows[0] for name, piece in self._moved.items()}
        return only_first(masters, rank, starts)

    def _clip(self) -> float:
        """Clip by the norm over all pieces of all ranks, which it returns."""
        if self.recipe.clip is None:
            return math.nan
        masters = [piece.master for piece in self._moved.values()]
        grads = [master.grad for master in masters if master.grad is not None]
        norm = self._norm(grads)
        clip_grads_with_norm_(masters, self.recipe.clip, norm)
        return float(norm)

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm, in float32 whatever the gradients are."""
        squares = torch.zeros((), device=self.device)
        for gradient in gradients:
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
            squares += norm.to(self.device) ** 2
        return self._over_ranks(squares).sqrt()

    def _over_ranks(self, squares: Tensor) -> Tensor:
        """Return the sum over the ranks of what they have of the gradient."""
        return squares


class Spread(Pieced):
    """A back end where each rank moves its own rows; a base class."""

    def is_spread(self, piece: Piece) -> bool:
        """Tell whether ranks hold different rows of a tensor, or none."""
        return piece.trained

    def _over_ranks(self, squares: Tensor) -> Tensor:
        torch.distributed.all_reduce(squares)
        return squares


def _buffers(model: nn.Module) -> dict[str, Place]:
    """Return where a model's lasting state beside its parameters is, by name."""
    lasting = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    }
    return places(model, lasting)


def _at(place: Place) -> Tensor:
    module, name = place
    found: Tensor = getattr(module, name)
    return found


def _nothing(name: str) -> Array:
    raise KeyError(name)
