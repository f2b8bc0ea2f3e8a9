"""How fast aggregation is here, and how much memory it takes.

The sum runs in a process of its own, so that its peak memory can be told from that
of whatever called this.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from hansa.core.commands import Term
from hansa.core.errors import StoreError
from hansa.core.ids import assignment_id, update_ref, version_ref
from hansa.store.atomic import remove_directory
from hansa.store.dtypes import BLOCK, Array, convert, stored
from hansa.store.folder import reader
from hansa.store.tensorfile import TensorInfo, TensorWriter
from hansa.store.update import Measured, write_update
from hansa.store.versions import Store

_LARGEST: Final = 1 << 24  # elements of a synthetic tensor
_COPY: Final = 1 << 27  # bytes that are copied to measure the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregateBench:
    """What `bench_aggregate` measured.

    Attributes:
        parameters: Numbers in the model.
        dtype: Format of the model and of the updates.
        updates: Updates in the sum.
        threads: Threads at work: one adds up, one for each file written.
        seconds: Median time of one aggregation, files to files.
        reference_seconds: Time of a plain C loop over the same arrays in memory;
            None where it was not measured.
        ratio: `seconds` over `reference_seconds`.
        floor_seconds: Bytes read and written over the measured speed of a memory
            copy (its bytes read and written, too): no disk, no hash, no arithmetic.
        extra_memory_bytes: Peak of the resident memory during the sum, less what
            the process had before.
        bytes_read: Of all terms.
        bytes_written: Of the version and its master.
    """

    parameters: int
    dtype: str
    updates: int
    threads: int
    seconds: float
    reference_seconds: float | None
    ratio: float | None
    floor_seconds: float
    extra_memory_bytes: int
    bytes_read: int
    bytes_written: int


def bench_aggregate(
    parameters: int,
    dtype: str,
    updates: int,
    directory: Path | None = None,
    repeats: int = 3,
) -> AggregateBench:
    """Measure the aggregation of synthetic updates.

    Args:
        parameters: Numbers in the model.
        dtype: Format of the model and the updates.
        updates: How many there are.
        directory: Where the files go (removed afterwards); None takes the system's
            place for temporary files.
        repeats: Aggregations; the median counts.

    Raises:
        StoreError: The measuring process failed.
        StorageFull: The files don't fit into `directory`.
    """
    with TemporaryDirectory(prefix="hansa-bench-", dir=directory) as place:
        store = Store(Path(place) / "run", dtype)
        terms = _synthetic(store, Path(place) / "initial", parameters, updates)
        found = _measure(store, dtype, terms, max(1, repeats))
        moved = [path.stat().st_size for path in _read_by(store, terms)]
        written = sum(
            path.stat().st_size
            for folder in (store.version_dir(0), store.master_dir(0))
            for path in folder.glob("*.safetensors")
        )
    return AggregateBench(
        parameters=parameters,
        dtype=dtype,
        updates=updates,
        threads=2 if dtype == "float32" else 3,
        seconds=statistics.median(found["seconds"]),
        reference_seconds=None,
        ratio=None,
        floor_seconds=(sum(moved) + written) / found["copy"][0],
        extra_memory_bytes=round(found["memory"][0]),
        bytes_read=sum(moved),
        bytes_written=written,
    )


def _synthetic(
    store: Store, initial: Path, parameters: int, updates: int
) -> list[Term]:
    """Make version 0 and some updates of it; return the terms of their mean."""
    form = stored(store.dtype)
    sizes = _sizes(parameters)
    layout = [
        TensorInfo(name=name, shape=(size,), dtype=form) for name, size in sizes.items()
    ]
    initial.mkdir()
    with TensorWriter(initial / "model.safetensors", layout) as writer:
        for _, values in _noise(sizes, 0):
            for start in range(0, len(values), BLOCK):
                block = values[start : start + BLOCK]
                narrow = np.empty(len(block), form.numpy)
                convert(block, narrow)
                writer.write(narrow)
    store.import_initial(initial)
    (initial / "model.safetensors").unlink()
    with reader(store.version_dir(0)) as version:
        shapes = version.shapes()
    terms = [Term(ref=version_ref(0), coefficient=1.0)]
    for number in range(updates):
        name = assignment_id("train", 1, f"facility-{number}")
        measured = Measured(assignment=name, facility=f"facility-{number}", base=0)
        tensors = _noise(sizes, number + 1)
        write_update(
            store.update_dir(name), shapes, tensors, measured, dtype=store.dtype
        )
        terms.append(Term(ref=update_ref(name), coefficient=1.0 / updates))
    return terms


def _sizes(parameters: int) -> dict[str, int]:
    """Return names and sizes of tensors that have so many numbers together."""
    count = max(1, -(-parameters // _LARGEST))
    whole, rest = divmod(parameters, count)
    return {f"layer.{i:04d}": whole + (i < rest) for i in range(count)}


def _noise(sizes: dict[str, int], seed: int) -> Iterator[tuple[str, Array]]:
    some = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32)
    for name, size in sizes.items():
        yield name, np.resize(some, size)


def _read_by(store: Store, terms: list[Term]) -> Iterator[Path]:
    for term in terms:
        yield from store.source_dir(term.ref).glob("*.safetensors")


def _measure(
    store: Store, dtype: str, terms: list[Term], repeats: int
) -> dict[str, list[float]]:
    job = {
        "root": str(store.root),
        "dtype": dtype,
        "terms": [asdict(term) for term in terms],
        "repeats": repeats,
    }
    done = subprocess.run(
        [sys.executable, "-m", "hansa.store.bench"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StoreError(f"The measuring process failed:\n{done.stderr.strip()}")
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def _child() -> None:
    job = json.load(sys.stdin)
    store = Store(Path(job["root"]), job["dtype"])
    terms = [Term(**term) for term in job["terms"]]
    before, seconds = _memory("VmRSS"), []
    for _ in range(job["repeats"]):
        seconds.append(store.aggregate(1, terms).seconds)
        remove_directory(store.version_dir(1))
    memory = _memory("VmHWM") - before
    result = {"seconds": seconds, "memory": [memory], "copy": [_copy_speed()]}
    sys.stdout.write(json.dumps(result))


def _memory(field: str) -> int:
    """Return a line of /proc/self/status in bytes (VmHWM is the peak of VmRSS)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise StoreError(f"This system does not tell {field}.")


def _copy_speed() -> float:
    """Return bytes read and written per second by a large copy in memory."""
    source, target = np.ones(_COPY, np.uint8), np.zeros(_COPY, np.uint8)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * _COPY / best


if __name__ == "__main__":
    _child()
