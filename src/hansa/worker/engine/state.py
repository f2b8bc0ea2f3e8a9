"""A training state in pieces: each rank writes its rows, any number of ranks reads.

::

    <directory>/pieces-00003.json           what rank 3 wrote: rows by tensor, steps
    <directory>/pieces-00003.safetensors    "weight/<name>", "exp_avg/<name>", ...
    <directory>/generators-00003.safetensors    "cpu", and that of the rank's device
    <directory>/buffers.safetensors         the model's other state, where it has any

Weights are saved as the optimizer moves them. What all ranks have, each writes a share
of. Only safetensors and JSON, never pickle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hansa.core.errors import WorkerError
from hansa.core.rng import derive_seed
from hansa.worker.engine.base import Recipe
from hansa.worker.engine.pieces import Piece, by_rows, count, share
from hansa.worker.team import Team

WEIGHT, STEP = "weight", "step"
BUFFERS = "buffers.safetensors"

Count = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    """What a file has of one tensor.

    Attributes:
        shape: Of the whole tensor.
        dtype: torch's name for it.
        rows: The first row, and the one after the last.
        step: Steps that the optimizer has done with it, where it counts them.
        kinds: What else of the optimizer's state there is; it has the tensor's shape.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[Count, ...]
    dtype: str
    rows: tuple[Count, Count]
    step: float | None = None
    kinds: tuple[str, ...] = ()


class _Record(BaseModel):
    """What one rank wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    rank: Count
    world: Annotated[int, Field(ge=1)]
    steps: Count
    optimizer: str
    tensors: dict[str, _Entry]


class Holder(Protocol):
    """An engine whose state can be saved in pieces."""

    recipe: Recipe
    team: Team
    device: torch.device
    steps: int
    pieces: list[Piece]

    @property
    def optimizer_name(self) -> str:
        """Class of the optimizer."""
        ...

    def states(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the optimizer's state of each piece that it moves, by name."""
        ...

    def buffers(self) -> Mapping[str, Tensor]:
        """Return the model's state beside its parameters."""
        ...

    def is_spread(self, piece: Piece) -> bool:
        """Tell whether ranks hold different rows of a tensor."""
        ...


def save_state(holder: Holder, directory: Path) -> None:
    """Write a rank's part of the state into an existing folder."""
    team = holder.team
    states = holder.states()
    arrays: dict[str, Tensor] = {}
    entries: dict[str, _Entry] = {}
    for piece in holder.pieces:
        rows = piece.rows
        if not holder.is_spread(piece):  # then all ranks have it, and share the work
            rows = share(count(piece.shape), team.rank, team.world)
        if rows[0] == rows[1]:
            continue
        state = dict(states.get(piece.name, {}))
        step = state.pop(STEP, None)
        for kind, value in {WEIGHT: piece.master, **state}.items():
            arrays[f"{kind}/{piece.name}"] = _cut(value, piece.rows, rows).contiguous()
        entries[piece.name] = _Entry(
            shape=piece.shape,
            dtype=_dtype(piece.master),
            rows=rows,
            step=None if step is None else float(step),
            kinds=tuple(state),
        )
    record = _Record(
        rank=team.rank,
        world=team.world,
        steps=holder.steps,
        optimizer=holder.optimizer_name,
        tensors=entries,
    )
    _save(arrays, _arrays(directory, team.rank))
    _record(directory, team.rank).write_text(record.model_dump_json(), "utf-8")
    _save(_generators(holder.device), _generator_file(directory, team.rank))
    buffers = {n: b.detach().cpu().contiguous() for n, b in holder.buffers().items()}
    if buffers and team.rank == 0:
        _save(buffers, directory / BUFFERS)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file; the system's errors are told as such, which safetensors does not.

    Raises:
        OSError: It can't be written, as there is no space.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error


def restore_state(holder: Holder, directory: Path, *, optimizer_only: bool) -> None:
    """Put what `save_state` wrote into an engine's pieces.

    Where the number of ranks is another, the generators are seeded anew from the
    recipe's seed, the step and the rank.

    Raises:
        WorkerError: It is of another model or optimizer, incomplete or damaged.
    """
    try:
        records = _records(holder, directory)
        for piece in holder.pieces:
            _restore_piece(holder, piece, directory, records, optimizer_only)
        if not optimizer_only:
            holder.steps = records[0].steps
            _restore_buffers(holder.buffers(), directory / BUFFERS)
            _restore_generators(holder, directory, len(records))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        # What torch and safetensors raise for a damaged or foreign file.
        raise WorkerError(
            f"The training state in {directory} can't be restored: {error}"
        ) from error


def _records(holder: Holder, directory: Path) -> list[_Record]:
    """Return the records of all ranks that wrote, which must fit together."""
    first = _read_record(_record(directory, 0))
    records = [first]
    for rank in range(1, first.world):
        records.append(_read_record(_record(directory, rank)))
    if len({(one.world, one.steps, one.optimizer) for one in records}) > 1:
        raise WorkerError(
            f"The training state in {directory} is of several times.",
            hint="It is incomplete; the job begins anew.",
        )
    if first.optimizer != holder.optimizer_name:
        raise WorkerError(
            f"The training state in {directory} is of the optimizer "
            f"{first.optimizer}, not of {holder.optimizer_name}."
        )
    names = {name for record in records for name in record.tensors}
    differing = sorted(names ^ {piece.name for piece in holder.pieces})
    if differing:
        raise WorkerError(
            f"{directory} is of another model: tensor {differing[0]!r} is only in one "
            "of them."
        )
    return records


def _read_record(path: Path) -> _Record:
    try:
        return _Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise WorkerError(
            f"The training state lacks {path}, or it is damaged: {error}",
            hint="Every rank writes such a file; all are needed.",
        ) from error


def _restore_piece(
    holder: Holder,
    piece: Piece,
    directory: Path,
    records: Iterable[_Record],
    optimizer_only: bool,
) -> None:
    """Read a piece's rows, wherever they are, and check that all are there."""
    state = dict(holder.states().get(piece.name, {}))
    step = state.pop(STEP, None)
    targets = state if optimizer_only else {WEIGHT: piece.master, **state}
    there = 0
    for record in records:
        entry = record.tensors.get(piece.name)
        if entry is None:
            continue
        _check(piece, entry, directory)
        low, high = max(piece.rows[0], entry.rows[0]), min(piece.rows[1], entry.rows[1])
        if low >= high:
            continue
        there += high - low
        if set(entry.kinds) != set(state) or (entry.step is None) != (step is None):
            raise WorkerError(f"{directory}: tensor {piece.name!r} has other state.")
        with safe_open(_arrays(directory, record.rank), framework="pt") as file:
            for kind, target in targets.items():
                part = file.get_slice(f"{kind}/{piece.name}")
                value = part[low - entry.rows[0] : high - entry.rows[0]]
                _cut(target, piece.rows, (low, high)).copy_(value)
        if step is not None and entry.step is not None:
            step.fill_(entry.step)
    if there != piece.rows[1] - piece.rows[0]:
        raise WorkerError(
            f"The training state in {directory} lacks rows of {piece.name!r}."
        )


def _check(piece: Piece, entry: _Entry, directory: Path) -> None:
    here = (piece.shape, _dtype(piece.master))
    if (entry.shape, entry.dtype) != here:
        raise WorkerError(
            f"{directory}: tensor {piece.name!r} is {entry.dtype}{list(entry.shape)}, "
            f"the model's is {here[1]}{list(piece.shape)}."
        )


def _restore_buffers(buffers: Mapping[str, Tensor], path: Path) -> None:
    saved = load_file(path) if buffers else {}
    for name, buffer in buffers.items():
        buffer.copy_(saved[name])


def _restore_generators(holder: Holder, directory: Path, world: int) -> None:
    rank = holder.team.rank
    if world != holder.team.world:
        torch.manual_seed(derive_seed(holder.recipe.seed, holder.steps, rank))
        return
    states = load_file(_generator_file(directory, rank))
    torch.set_rng_state(states["cpu"])
    kind = holder.device.type
    if kind in states and kind != "cpu":
        torch.get_device_module(holder.device).set_rng_state(states[kind])


def _generators(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def _cut(value: Tensor, held: tuple[int, int], rows: tuple[int, int]) -> Tensor:
    """Return some of the rows that are held, as a view without gradient."""
    return by_rows(value)[rows[0] - held[0] : rows[1] - held[0]]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _record(directory: Path, rank: int) -> Path:
    return directory / f"pieces-{rank:05}.json"


def _arrays(directory: Path, rank: int) -> Path:
    return directory / f"pieces-{rank:05}.safetensors"


def _generator_file(directory: Path, rank: int) -> Path:
    return directory / f"generators-{rank:05}.safetensors"
