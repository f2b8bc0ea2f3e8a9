from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hansa.core.errors import IntegrityError, StoreError
from hansa.core.files import FileRecord
from hansa.store.dtypes import BY_NAME, BY_NUMPY
from hansa.store.tensorfile import (
    TensorFile,
    TensorInfo,
    TensorWriter,
    hash_file,
    scratch,
)

BF16 = np.dtype(ml_dtypes.bfloat16)

DTYPES = [np.dtype(t) for t in ("f8", "f4", "f2", "i8", "i4", "i1", "u1", "?")]
DTYPES.append(BF16)


def some(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) * 100
    return np.asarray(values.astype(dtype))


def write(path: Path, arrays: dict[str, np.ndarray]) -> FileRecord:
    layout = [
        TensorInfo(name=name, shape=array.shape, dtype=BY_NUMPY[array.dtype])
        for name, array in arrays.items()
    ]
    with TensorWriter(path, layout) as writer:
        for array in arrays.values():
            writer.write(array)
    return writer.record


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object, shape: object, offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


arrays = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3).map(tuple)
    ),
    max_size=5,
)


@given(kinds=arrays)
def test_the_library_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    given = {name: some(*kind, seed=i) for i, (name, kind) in enumerate(kinds.items())}
    record = write(path, given)
    assert record == FileRecord(
        bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    found = load_file(path)
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@given(kinds=arrays, size=st.integers(1, 9))
def test_we_read_what_the_library_writes(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, Any], size: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    given = {name: some(*kind, seed=i) for i, (name, kind) in enumerate(kinds.items())}
    save_file(given, path, metadata={"format": "np"})
    buffer = scratch(size)
    with TensorFile(path) as file:
        assert file.tensors.keys() == given.keys()
        for name, array in given.items():
            info = file.tensors[name]
            whole = file.read(name)
            assert (whole.dtype, whole.shape) == (array.dtype, array.shape)
            assert whole.tobytes() == array.tobytes()
            parts = []
            for start, block in file.blocks(info, buffer):
                assert start * array.itemsize == sum(map(len, parts))
                parts.append(block.tobytes())
            assert b"".join(parts) == array.tobytes()


def test_the_same_tensors_have_the_same_bytes(tmp_path: Path) -> None:
    given = {"a": some(BF16, (3,)), "b": some(np.dtype("f4"), (2, 2))}
    one = write(tmp_path / "1", given)
    assert one == write(tmp_path / "2", given)
    assert hash_file(tmp_path / "1") == one


GOOD = {"a": entry("F32", [2], [0, 8]), "b": entry("BF16", [], [8, 10])}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"[]", b"", "not a JSON object"),
        (b"{", b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a":1,"a":2}', b"", "occurs twice"),
        ({"a": 1}, b"", "wrong entry"),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "wrong entry"),
        ({"a": {**entry("F32", [1], [0, 4]), "x": 1}}, bytes(4), "wrong entry"),
        ({"a": entry("F99", [1], [0, 4])}, bytes(4), "unknown dtype 'F99'"),
        ({"a": entry(["F32"], [1], [0, 4])}, bytes(4), "unknown dtype"),
        ({"a": entry("F32", [-1], [0, 4])}, bytes(4), "wrong shape"),
        ({"a": entry("F32", [1.0], [0, 4])}, bytes(4), "wrong shape"),
        ({"a": entry("F32", [True], [0, 4])}, bytes(4), "wrong shape"),
        ({"a": entry("F32", 1, [0, 4])}, bytes(4), "wrong shape"),
        ({"a": entry("F32", [1], [0, 4, 8])}, bytes(4), "wrong offsets"),
        ({"a": entry("F32", [1], [4, 0])}, bytes(4), "impossible offsets"),
        ({"a": entry("F32", [1], [4, 8])}, bytes(8), "impossible offsets"),
        ({"a": entry("F32", [2], [0, 4])}, bytes(4), "impossible offsets"),
        ({"a": entry("F32", [1 << 40, 1 << 40], [0, 4])}, bytes(4), "impossible"),
        ({"a": entry("F32", [2], [0, 8])}, bytes(4), "impossible offsets"),
        ({**GOOD, "b": entry("BF16", [], [6, 8])}, bytes(8), "impossible offsets"),
        ({**GOOD, "b": entry("BF16", [], [9, 11])}, bytes(11), "impossible offsets"),
        (GOOD, bytes(11), "11 bytes of tensors; its header says 10"),
        (GOOD, bytes(9), "impossible offsets"),
        ({}, bytes(1), "1 bytes of tensors"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: object, data: bytes, words: str
) -> None:
    path = raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(IntegrityError, match=words) as caught:
        TensorFile(path)
    assert "bad.safetensors" in caught.value.message


@pytest.mark.parametrize("prefix", [b"", b"\1\0", bytes([9]) + bytes(7), b"\xff" * 8])
def test_a_header_longer_than_the_file_is_refused(
    tmp_path: Path, prefix: bytes
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(prefix + b"{}"[: len(prefix)])
    with pytest.raises(IntegrityError, match="header"):
        TensorFile(path)


def test_a_huge_header_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # Sparse: takes no space.
    with pytest.raises(IntegrityError, match="header of 200000000 bytes"):
        TensorFile(path)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_never_does_harm(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    write(path, {"a": some(BF16, (3,)), "b": some(np.dtype("f4"), (2, 2))})
    content = bytearray(path.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    content[place % size] ^= 1 << bit
    path.write_bytes(content)
    with suppress(IntegrityError), TensorFile(path) as file:
        for name in file.tensors:
            file.read(name)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"a": some(BF16, (3,)), "b": some(np.dtype("f4"), (2, 2))})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(IntegrityError, match=r"x\.safetensors"):
            TensorFile(path)


def test_a_file_that_shrinks_while_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"a": some(BF16, (300,))})
    with TensorFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size - 1)
        with pytest.raises(IntegrityError, match="too early"):
            file.read("a")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"nowhere is missing"):
        TensorFile(tmp_path / "nowhere")
    write(tmp_path / "x", {})
    with TensorFile(tmp_path / "x") as file, pytest.raises(IntegrityError, match="'q'"):
        file.read("q")
    file.close()


def test_a_writer_that_got_too_little_says_so(tmp_path: Path) -> None:
    layout = [TensorInfo(name="a", shape=(2,), dtype=BY_NAME["float32"])]
    writer = TensorWriter(tmp_path / "x", layout)
    with pytest.raises(StoreError, match="header says"), writer:
        writer.write(np.zeros(1, np.float32))
    with pytest.raises(StoreError, match="still being written"):
        _ = writer.record


def test_large_tensors_are_read_in_blocks(tmp_path: Path) -> None:
    given = np.arange(300_000, dtype=np.float32)
    write(tmp_path / "x", {"a": given})
    buffer = scratch()
    with TensorFile(tmp_path / "x") as file:
        seen = [
            (start, len(block), float(block[0]))
            for start, block in file.blocks(file.tensors["a"], buffer)
        ]
    assert seen == [(0, 262_144, 0.0), (262_144, 37_856, 262_144.0)]


def test_short_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    write(tmp_path / "x", {"a": np.arange(9, dtype=np.float32)})
    real: Callable[..., int] = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, to, offset: real(fd, [to[0][:5]], offset)
    )
    with TensorFile(tmp_path / "x") as file:
        assert file.read("a").tolist() == list(range(9))
