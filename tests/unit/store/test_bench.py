from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hansa.core.errors import StoreError
from hansa.store import bench, reference
from hansa.store.bench import Task, bench_aggregate
from hansa.store.reference import (
    Compiled,
    Region,
    compile_reference,
    region,
    run_reference,
)

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None,
    reason="the yardstick is a C loop, and no C compiler (cc) is installed",
)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("dtype", "item", "optimizer"),
    [("bfloat16", 2, "none"), ("float32", 4, "none"), ("bfloat16", 2, "momentum")],
)
def test_memory_does_not_grow_with_the_model(
    tmp_path: Path, dtype: str, item: int, optimizer: str
) -> None:
    size = 12_000_000
    task = Task(
        parameters=size,
        dtype=dtype,
        updates=3,
        threads=2,
        optimizer=optimizer,
        repeats=1,
    )
    steps: list[tuple[str, int, int]] = []
    found = bench_aggregate(task, tmp_path, lambda *step: steps.append(step))
    assert (found.parameters, found.dtype, found.updates) == (size, dtype, 3)
    assert (found.threads, found.reducer, found.optimizer) == (2, "linear", optimizer)
    assert found.seconds > 0
    assert found.floor_seconds > 0
    assert found.published_seconds > 0
    assert (found.linear_ratio == 1.0) == (optimizer == "none")
    # The model alone is 48 MB in fp32.
    assert 0 < found.extra_memory_bytes < 32e6
    moment = 4 if optimizer == "momentum" else 0
    assert found.bytes_read == pytest.approx(size * (4 + 3 * item + moment), rel=1e-3)
    written = size * ((4 if item == 4 else 6) + moment)
    assert found.bytes_written == pytest.approx(written, rel=1e-3)
    assert steps[0] == ("making files", 0, 4)
    assert steps[-1] == ("measuring", 1, 1)
    assert list(tmp_path.iterdir()) == []
    if shutil.which("cc"):  # Its numbers are compared with ours, bit by bit.
        assert found.reference_seconds is not None
        assert found.ratio == pytest.approx(found.seconds / found.reference_seconds)
        assert "-O3" in found.reference


@pytest.mark.integration
def test_without_a_compiler_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Compiled(None, "no C compiler is at hand")
    monkeypatch.setattr(bench, "compile_reference", lambda _: nothing)
    task = Task(parameters=1000, dtype="float32", updates=3, reducer="krum", repeats=1)
    found = asdict(bench_aggregate(task, tmp_path))
    assert found["reference_seconds"] is found["ratio"] is None
    assert found["reference"] == "no C compiler is at hand"
    assert found["seconds"] > 0
    assert found["linear_ratio"] > 0


def test_a_failure_of_the_measuring_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    task = Task(parameters=10, dtype="float32", updates=1)
    with pytest.raises(StoreError, match="measuring process failed"):
        bench_aggregate(task, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int8"}, "'int8'"),
        ({"reducer": "mean"}, "no 'mean' to measure"),
        ({"optimizer": "sgd"}, "no 'sgd' to measure"),
    ],
)
def test_what_can_not_be_measured(
    tmp_path: Path, change: dict[str, str], words: str
) -> None:
    asked = {"dtype": "float32", **change}
    with pytest.raises(StoreError, match=words):
        bench_aggregate(Task(parameters=10, **asked), tmp_path)  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize("numbers", [1, 131072, 200_001])
def test_the_c_loop_by_hand(tmp_path: Path, numbers: int) -> None:
    compiled = compile_reference(tmp_path)
    assert compiled.program, compiled.note
    one = np.arange(numbers, dtype=np.float32)
    two = (one % 8).astype(np.float16)
    save_file({"a": one}, tmp_path / "one")
    save_file({"a": two}, tmp_path / "two")
    places = [region(tmp_path / name) for name in ("one", "two")]
    assert [place.dtype for place in places] == ["float32", "float16"]
    out = Region(tmp_path / "out", "float32", places[0].offset)
    seconds = run_reference(
        compiled.program, numbers, [out], [(0.5, places[0]), (-2.0, places[1])]
    )
    assert seconds > 0
    header = (tmp_path / "one").read_bytes()[: out.offset]
    content = (tmp_path / "out").read_bytes()
    (tmp_path / "whole").write_bytes(header + content[out.offset :])
    found = load_file(tmp_path / "whole")["a"]
    assert np.array_equal(found, 0.5 * one - 2.0 * (one % 8))
    with pytest.raises(StoreError, match=r"C loop failed: .*out"):  # which exists
        run_reference(compiled.program, numbers, [out], [(1.0, places[0])])


def test_compilers_that_are_missing_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compile_reference(tmp_path) == Compiled(None, "no C compiler is at hand")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    failed = subprocess.CompletedProcess([], 1, "", "error: no such flag\nmore")
    monkeypatch.setattr(reference.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setenv("CC", "mycc")
    note = "/usr/bin/mycc failed: error: no such flag"
    assert compile_reference(tmp_path) == Compiled(None, note)


def test_the_c_loop_needs_one_dtype(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1), "b": np.zeros(1, np.float32)}, tmp_path / "two")
    with pytest.raises(StoreError, match="of 2 dtypes"):
        region(tmp_path / "two")
