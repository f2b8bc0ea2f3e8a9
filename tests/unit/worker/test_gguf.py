"""GGUF files: numbers by hand, and files that are damaged or lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from hansa.core.errors import WorkerError
from hansa.worker.trainers.gguf import GgufLlama

NORM, ALIGNMENT = "output_norm.weight", "general.alignment"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def file(
    path: Path, *, facts: bytes = b"", tensor: bytes = b"", end: bytes = b""
) -> Path:
    """Write a file with up to one fact and one tensor."""
    head = b"GGUF" + struct.pack("<IQQ", 3, bool(tensor), bool(facts)) + facts + tensor
    path.write_bytes(head + bytes(-len(head) % 32) + end)
    return path


def tensor(shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(NORM) + sizes + struct.pack("<IQ", kind, offset)


def test_numbers_of_a_block_by_hand(tmp_path: Path) -> None:
    block = struct.pack("<e32b", 0.5, *range(-16, 16))  # a scale, then 32 numbers
    path = file(tmp_path / "a.gguf", tensor=tensor((32,), 8), end=block)
    read = GgufLlama(path)
    assert read.names == {"model.norm.weight"}
    np.testing.assert_array_equal(
        read("model.norm.weight"), np.arange(-16, 16, dtype=np.float32) / 2
    )


@pytest.mark.parametrize(
    ("facts", "tensors", "words"),
    [
        (struct.pack("<Q", 2**62), b"", "no GGUF file of a model"),
        (struct.pack("<Q", 2**64 - 1), b"", "no GGUF file of a model"),
        (text("a") + struct.pack("<IIQ", 9, 4, 2**40), b"", "no GGUF file"),
        (
            text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9999,
            b"",
            "recurs",
        ),
        (text("a") + struct.pack("<I", 77), b"", "no GGUF file"),
        (text(ALIGNMENT) + struct.pack("<II", 4, 0), b"", "its alignment is 0"),
        (
            text(ALIGNMENT) + struct.pack("<I", 8) + text("x"),
            b"",
            "its alignment is 'x'",
        ),
        (b"", text(NORM) + struct.pack("<I", 2**32 - 1), "no GGUF file"),
        (b"", tensor((32,), 99), "'output_norm.weight' is of an unknown kind"),
        (b"", tensor((33,), 8), "'output_norm.weight' is of an unknown kind"),
        (b"", tensor((32,), 8, 2**50), "ends before its tensor 'output_norm.weight'"),
        (b"", tensor((2**62,), 0), "ends before its tensor 'output_norm.weight'"),
    ],
)
def test_a_file_that_lies_is_refused_at_once(
    tmp_path: Path, facts: bytes, tensors: bytes, words: str
) -> None:
    path = file(
        tmp_path / "a.gguf",
        facts=facts,
        tensor=tensors,
        end=b"" if not tensors else bytes(34),
    )
    with pytest.raises(WorkerError, match=words):
        GgufLlama(path)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"PK" * 50):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(WorkerError, match="no GGUF file of a model"):
            GgufLlama(tmp_path / "a")
