from __future__ import annotations

from pathlib import Path

import pytest

from hansa.core.errors import StoreError
from hansa.store import bench
from hansa.store.bench import bench_aggregate


@pytest.mark.integration
@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float32", 4)])
def test_memory_does_not_grow_with_the_model(
    tmp_path: Path, dtype: str, item: int
) -> None:
    size = 6_000_000
    found = bench_aggregate(size, dtype, 3, tmp_path, repeats=1)
    assert (found.parameters, found.dtype, found.updates) == (size, dtype, 3)
    assert found.threads == (2 if item == 4 else 3)
    assert found.seconds > 0
    assert found.floor_seconds > 0
    assert found.reference_seconds is None
    assert found.ratio is None
    assert 0 < found.extra_memory_bytes < 16e6  # The model alone is 24 MB in fp32.
    read = size * (4 + 3 * item)
    written = size * (4 if item == 4 else 6)
    assert found.bytes_read == pytest.approx(read, rel=1e-3)
    assert found.bytes_written == pytest.approx(written, rel=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_measuring_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_read_by", lambda *_: [])
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(StoreError, match="measuring process failed"):
        bench_aggregate(10, "float32", 1, tmp_path)
