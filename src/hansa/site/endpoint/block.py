"""The block of nodes that an endpoint's own engine holds, as its template says it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hansa.core.errors import UsageError

COMPUTE, MPI = "GlobusComputeEngine", "GlobusMPIEngine"
_HEARTBEAT_S = 30
_QUEUE_S = 14 * 86400.0
"""So long may a block wait in the queue before the endpoint gives it up, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Nodes that an endpoint asks the batch system for.

    Attributes:
        engine: Name of the engine.
        batch: The batch system.
        options: Options of its driver, as in site.yaml: `queue` of Slurm, `chunk` and
            `place` of PBS.
        nodes: Nodes of the block.
        time: Its walltime in seconds.
        queue: Queue; None: the batch system's own.
        account: Project that is charged; None: the user's own.
        directives: Lines for the batch system, without its prefix.
        cores: Cores of a node; None: not known.
        idle: Seconds that the nodes may idle.
    """

    engine: str
    batch: Literal["slurm", "pbs"]
    options: Mapping[str, object]
    nodes: int
    time: float
    queue: str | None = None
    account: str | None = None
    directives: tuple[str, ...] = ()
    cores: int | None = None
    idle: float = 300.0

    @property
    def walltime(self) -> str:
        """The walltime as ``HH:MM:SS``, days counted as hours."""
        whole = math.ceil(self.time)
        return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def batch_of(name: str) -> Literal["slurm", "pbs"]:
    """Return the batch system of that name.

    Raises:
        UsageError: No engine of Globus Compute asks such a one from here.
    """
    if name == "slurm":
        return "slurm"
    if name == "pbs":
        return "pbs"
    raise UsageError(
        f"There is no block of nodes from {name!r}.",
        hint="Name a machine with Slurm or PBS with --profile; see `hansa profiles`.",
    )


def block_words(
    block: Block | None, programs: Path, exports: Mapping[str, str]
) -> dict[str, str]:
    """Return what fills the block's part of the template; nothing without a block.

    Args:
        block: The nodes.
        programs: Folder of the endpoint's own programs.
        exports: Environment of the worker on the nodes.
    """
    if block is None:
        return {}
    request = _slurm(block) if block.batch == "slurm" else _pbs(block)
    return {
        "engine": block.engine,
        "provider": f"{'Slurm' if block.batch == 'slurm' else 'PBSPro'}Provider",
        "workers": "\n".join(f"  {line}" for line in _workers(block)),
        "nodes": str(block.nodes),
        "walltime": block.walltime,
        "idle": f"{block.idle:.1f}",
        "request": "\n".join(f"    {line}" for line in request),
        "init": "\n".join(f"      {line}" for line in _init(block, programs, exports)),
        "patience": f"{(block.time + _QUEUE_S) / 86400:.3g} days",
        "hard": str(math.ceil((block.time + _QUEUE_S) / _HEARTBEAT_S)),
    }


def _init(block: Block, programs: Path, exports: Mapping[str, str]) -> Iterator[str]:
    yield f"export PATH={shlex.quote(str(programs))}:$PATH"
    for name, value in exports.items():
        yield f"export {name}={shlex.quote(value)}"
    # What `hansa.site.work` needs to know of the block around it.
    yield f"export HANSA_BLOCK={block.nodes}"
    yield f"export HANSA_BLOCK_ENDS=$(( $(date +%s) + {math.floor(block.time)} ))"


def _workers(block: Block) -> Iterator[str]:
    if block.engine == MPI:
        yield "max_workers_per_block: 1"
        yield f"mpi_launcher: {'srun' if block.batch == 'slurm' else 'mpiexec'}"
    else:
        yield "max_workers_per_node: 1"


def _slurm(block: Block) -> Iterator[str]:
    if block.queue is not None:
        key = "qos" if block.options.get("queue") == "qos" else "partition"
        yield f"{key}: {json.dumps(block.queue)}"
    if block.account is not None:
        yield f"account: {json.dumps(block.account)}"
    yield from _directives("#SBATCH", block.directives)


def _pbs(block: Block) -> Iterator[str]:
    if block.queue is not None:
        yield f"queue: {json.dumps(block.queue)}"
    if block.account is not None:
        yield f"account: {json.dumps(block.account)}"
    parts = [part for part in str(block.options.get("chunk") or "").split(":") if part]
    named = [part for part in parts if part.startswith("ncpus=")]
    cores = re.sub(r"\D", "", named[0]) if named else str(block.cores or 1)
    yield f"cpus_per_node: {cores}"
    others = ":".join(part for part in parts if part not in named)
    if others:
        yield f"select_options: {json.dumps(others)}"
    place = str(block.options.get("place") or "")
    lines = [f"-l place={place}"] if place else []
    yield from _directives("#PBS", (*lines, "-k doe", *block.directives))


def _directives(prefix: str, lines: tuple[str, ...]) -> Iterator[str]:
    if lines:
        yield "scheduler_options: |"
        yield from (f"  {prefix} {line}" for line in lines)
