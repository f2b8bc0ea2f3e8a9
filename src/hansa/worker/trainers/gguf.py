"""The weights of a llama in a GGUF file, row by row, as Hugging Face calls them.

The library `gguf` reads the vocabulary through a hundred thousand views of the file,
which takes a job half a minute; what is needed here is the place of each tensor. The
format is described in ggml's ``docs/gguf.md``; quantised numbers stand in blocks of 32
within a row: ``q * d`` (Q8_0), ``q * d + m`` (Q4_1).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.errors import WorkerError
from hansa.worker.base import Array

_BLOCK = 32
_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_DAMAGE = (
    OSError,
    ValueError,
    struct.error,
    LookupError,
    OverflowError,
    RecursionError,
)
_LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _float32(raw: Array) -> Array:
    return raw.view("<f4")


def _float16(raw: Array) -> Array:
    return raw.view("<f2").astype(np.float32)


def _q8_0(raw: Array) -> Array:
    blocks = raw.reshape(len(raw), -1, 2 + _BLOCK)
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    values = np.ascontiguousarray(blocks[..., 2:]).view(np.int8) * scale
    return values.reshape(len(raw), -1)


def _q4_1(raw: Array) -> Array:
    blocks = raw.reshape(len(raw), -1, 4 + _BLOCK // 2)
    pair = np.ascontiguousarray(blocks[..., :4]).view("<f2").astype(np.float32)
    packed = np.asarray(blocks[..., 4:], np.uint8)
    codes = np.concatenate((packed & 15, packed >> 4), axis=-1)
    values = codes * pair[..., :1] + pair[..., 1:]
    return values.reshape(len(raw), -1)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How numbers are stored: bytes of a block, numbers in it, what decodes rows."""

    bytes: int
    numbers: int
    decode: Callable[[Array], Array]


_KINDS = {
    0: _Kind(4, 1, _float32),
    1: _Kind(2, 1, _float16),
    3: _Kind(4 + _BLOCK // 2, _BLOCK, _q4_1),
    8: _Kind(2 + _BLOCK, _BLOCK, _q8_0),
}


@dataclass(frozen=True, slots=True)
class _Place:
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def bytes(self) -> int:
        """Size in the file."""
        kind = _KINDS[self.kind]
        return math.prod(self.shape) // kind.numbers * kind.bytes


class GgufLlama:
    """A `hansa.worker.reading.RowReader` of one file.

    Args:
        path: The file.

    Attributes:
        about: What the file says of the model, by the format's keys.

    Raises:
        WorkerError: It is no GGUF file, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        try:
            with (
                path.open("rb") as file,
                # Mapped, as a read of any length is of no more than there is.
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
            ):
                self.about, self._places, start = _header(view)
            self._raw = np.memmap(path, np.uint8, mode="r", offset=start)
        except _DAMAGE as error:
            raise WorkerError(f"{path} is no GGUF file of a model: {error}.") from error
        for name, place in self._places.items():
            if place.offset + place.bytes > len(self._raw):
                raise WorkerError(f"{path} ends before its tensor {name!r} does.")

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors, as Hugging Face has them."""
        inner = {theirs: ours for ours, theirs in _LAYERS.items()}
        outer = {theirs: ours for ours, theirs in _OUTER.items()}
        found = set()
        for name in self._places:
            _, _, rest = name.partition("blk.")
            number, _, part = rest.partition(".")
            part = inner.get(part.removesuffix(".weight"), part)
            found.add(outer.get(name, f"model.layers.{number}.{part}.weight"))
        return frozenset(found)

    def __call__(self, name: str) -> Array:
        """Return the whole tensor as float32."""
        return self.rows(name, 0, self.shape(name)[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._places[_theirs(name)].shape

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as float32; only they are expanded."""
        place = self._places[_theirs(name)]
        kind, flat = _KINDS[place.kind], len(place.shape) == 1
        rows, width = (1, place.shape[0]) if flat else place.shape
        size = width // kind.numbers * kind.bytes
        raw = self._raw[place.offset : place.offset + place.bytes].reshape(rows, size)
        if flat:
            found: Array = kind.decode(np.ascontiguousarray(raw)).reshape(-1)
            return found[start:stop].copy()
        wanted = self._order(name, rows)[start:stop]
        return kind.decode(np.ascontiguousarray(raw[wanted]))

    def _order(self, name: str, rows: int) -> Array:
        """Return which row of the file is each row of the tensor.

        The file has the two halves of a head's rotated pairs alternating.
        """
        every = np.arange(rows)
        heads = {"q_proj": "head_count", "k_proj": "head_count_kv"}
        key = heads.get(name.split(".")[-2])
        if key is None:
            return every
        count = self.about[f"llama.attention.{key}"]
        return every.reshape(count, -1, 2).swapaxes(1, 2).reshape(rows)


def _theirs(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, _, rest = name.partition("model.layers.")
    number, _, part = rest.partition(".")
    return f"blk.{number}.{_LAYERS[part.removesuffix('.weight')]}.weight"


def _header(file: mmap.mmap) -> tuple[dict[str, Any], dict[str, _Place], int]:
    """Return the file's facts, each tensor's place, and where the numbers begin."""
    if file.read(4) != b"GGUF":
        raise ValueError("its first bytes are others")
    _, tensors, facts = struct.unpack("<IQQ", file.read(20))
    about = {_text(file): _value(file, *_numbers(file, "I")) for _ in range(facts)}
    places = dict(_place(file) for _ in range(tensors))
    step = about.get("general.alignment", 32)
    if type(step) is not int or step < 1:
        raise ValueError(f"its alignment is {step!r}")
    return about, places, -(-file.tell() // step) * step


def _place(file: mmap.mmap) -> tuple[str, _Place]:
    name = _text(file)
    (axes,) = _numbers(file, "I")
    shape = tuple(reversed(_numbers(file, f"{axes}Q")))
    kind, offset = _numbers(file, "IQ")
    known = kind in _KINDS and 1 <= axes <= 2
    if not known or shape[-1] % _KINDS[kind].numbers:
        raise ValueError(f"its tensor {name!r} is of an unknown kind")
    return name, _Place(shape, kind, offset)


def _numbers(file: mmap.mmap, codes: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{codes}", file.read(struct.calcsize(f"<{codes}")))


def _text(file: mmap.mmap) -> str:
    (length,) = _numbers(file, "Q")
    return file.read(length).decode("utf-8", "replace")


def _value(file: mmap.mmap, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _numbers(file, _SCALARS[kind])[0]
    inner, count = _numbers(file, "IQ")
    if inner in (_STRING, _ARRAY):
        return [_value(file, inner) for _ in range(count)]
    return list(_numbers(file, f"{count}{_SCALARS[inner]}"))
