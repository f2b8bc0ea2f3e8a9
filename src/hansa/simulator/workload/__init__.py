"""Jobs of others: workload files of batch systems, read and drawn."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hansa.core.errors import SimulationError
from hansa.simulator.workload.base import TraceJob, Workload
from hansa.simulator.workload.exports import read_qstat, read_sacct
from hansa.simulator.workload.gaps import repeat
from hansa.simulator.workload.swf import read_swf

__all__ = ["TraceJob", "Workload", "read_workload", "remarks", "repeat"]


def read_workload(path: Path, node_cores: int) -> Workload:
    """Read a workload file; what it is is seen in it.

    A file in Standard Workload Format, the output of `sacct --parsable2` or that of
    `qstat -x -f -F json`. Lines that can't be read are set aside and told.

    Args:
        path: The file.
        node_cores: Processors that are one node, where the file counts processors.

    Raises:
        SimulationError: It can't be read, or there is no job in it that can be
            simulated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SimulationError(
            f"{path}: the workload can't be read: {error.strerror}.",
            hint="See queue.workload in the simulation.",
        ) from error
    return _jobs_of(path, data, node_cores)


# The runs of a comparison read the same file over and over.
@lru_cache(maxsize=4)
def _jobs_of(path: Path, data: bytes, node_cores: int) -> Workload:
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise SimulationError(
            f"{path}, line {line}: it is no text.",
            hint="Unpack it first if it is compressed.",
        )
    # Comments may be in any encoding; all that counts is ASCII.
    text = data.decode("utf-8", errors="replace").removeprefix("\ufeff")
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip().startswith("{"):
        return read_qstat(path, text, node_cores)
    if "|" in first and not first.startswith(";"):
        return read_sacct(path, text, node_cores)
    return read_swf(path, text, node_cores)


def remarks(path: Path, workload: Workload) -> tuple[str, ...]:
    """Return what people should know about a file that was read, in sentences."""
    said = []
    if workload.unreadable:
        number, words = workload.unreadable[0]
        said.append(
            f"{path}: {len(workload.unreadable)} lines can't be read; the first is "
            f"line {number}: {words}."
        )
    if workload.left_out:
        said.append(
            f"{path}: {workload.left_out} jobs without a size or a time are left out."
        )
    if workload.gaps:
        days = max(end - begin for begin, end in workload.gaps) / 86400.0
        said.append(
            f"{path}: {len(workload.gaps)} times nobody submitted anything for very "
            f"long, up to {days:.1f} days; whole days of that are taken out."
        )
    return tuple(said)
