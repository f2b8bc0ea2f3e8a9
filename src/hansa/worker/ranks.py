"""The ranks of a launch check in with each other before anything is trained.

::

    <job_dir>/ranks/<attempt>/<rank>.json    made by each rank, once
    <job_dir>/ranks/<attempt>/team.json      where rank 0 is met (see `meeting`)
    <job_dir>/rank-0001.log                  what rank 1 says

The attempt is a word that the batch script draws anew each time it starts, so what a
requeued job has left behind is not taken for a rank of this launch.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from hansa.core.errors import IntegrityError, SpecError, WorkerError
from hansa.mailbox.files import read_json, storage_full
from hansa.worker.job import SCHEMA
from hansa.worker.launch import Rank
from hansa.worker.signals import Stop
from hansa.worker.waiting import Clock

log = logging.getLogger(__name__)

ARRIVE_S, LOOK_S = 300.0, 0.2
"""The first rank waits so long for the others, and looks so often."""

_ATTEMPT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Present:
    """A rank that has checked in; `machine` tells hosts apart that share a name."""

    rank: int
    world: int | None
    local: int | None
    launcher: str
    host: str
    machine: str
    pid: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Launch:
    """What was ordered.

    Attributes:
        job_dir: The job's directory in the mailbox.
        attempt: Word of this start of the batch script.
        nodes: Nodes of the job.
        ranks: Processes over all nodes.
        sha256: Hash that was promised for ``job.json``.
    """

    job_dir: Path
    attempt: str
    nodes: int
    ranks: int
    sha256: str

    @property
    def directory(self) -> Path:
        """Where the ranks of this start check in."""
        if not _ATTEMPT.fullmatch(self.attempt):
            raise SpecError(f"--attempt {self.attempt!r} can't be a directory's name.")
        return self.job_dir / "ranks" / self.attempt


def rank_log(job_dir: Path, rank: int) -> Path:
    """Return the log of a rank above 0."""
    return job_dir / f"rank-{rank:04d}.log"


def check_in(launch: Launch, rank: Rank) -> None:
    """Say that a rank is there.

    Raises:
        SpecError: The attempt is no name.
        WorkerError: The launcher started another number of processes than were
            ordered, or another process is the same rank.
    """
    _check_world(launch, rank.world, rank.launcher)
    path = launch.directory / f"{rank.rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    me = Present(
        rank=rank.rank,
        world=rank.world,
        local=rank.local,
        launcher=rank.launcher,
        host=_host(rank),
        machine=machine(),
        pid=os.getpid(),
        sha256=launch.sha256,
    )
    text = json.dumps({"schema": SCHEMA, "at": time.time(), **asdict(me)})
    try:
        with storage_full(path), path.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        path.with_suffix(".twice").touch()
        raise _twice(rank.rank) from error


def gather(
    launch: Launch,
    stop: Stop,
    clock: Clock | None = None,
    seen: Callable[[Mapping[int, Present]], None] | None = None,
) -> list[Present]:
    """Wait until all ranks have checked in, and verify them.

    Args:
        launch: What was ordered.
        stop: Says when to stop early.
        clock: The time.
        seen: Called at each look with the ranks that are there.

    Returns:
        The ranks, in order.

    Raises:
        WorkerError: Some do not come (transient), or they do not fit together.
    """
    clock = clock or Clock()
    until = clock.now() + ARRIVE_S
    found: Mapping[int, Present] = {}
    while True:
        found = arrived(launch, found)
        if seen is not None:
            seen(found)
        if len(found) >= launch.ranks:
            break
        if clock.now() >= until or stop.reason is not None:
            raise _missing(launch, found, stop.reason)
        clock.sleep(LOOK_S)
    present = [found[rank] for rank in sorted(found)]
    verify(launch, present)
    return present


def arrived(
    launch: Launch, known: Mapping[int, Present] | None = None
) -> dict[int, Present]:
    """Return the ranks that have checked in so far.

    Args:
        launch: What was ordered.
        known: Those that were seen before; their files are not read again.

    Raises:
        WorkerError: Two processes are the same rank.
    """
    found = dict(known or {})
    for path in sorted(launch.directory.iterdir()):
        if path.suffix == ".twice":
            raise _twice(int(path.stem))
        if not path.stem.isdecimal() or int(path.stem) in found:
            continue
        one = _read(path)
        if one is not None:
            found[one.rank] = one
    return found


def verify(launch: Launch, present: Sequence[Present]) -> None:
    """Compare the ranks with each other and with what was ordered.

    Raises:
        WorkerError: They are not the ranks 0, 1, ... of one launch of this job.
    """
    for one in present:
        _check_world(launch, one.world, one.launcher)
    if [one.rank for one in present] != list(range(launch.ranks)):
        raise WorkerError(
            f"The ranks of the launch are {_few(one.rank for one in present)}; "
            f"0 to {launch.ranks - 1} were ordered.",
            hint=_HINT,
        )
    for one in present:
        if one.sha256 != launch.sha256:
            raise WorkerError(
                f"Rank {one.rank} on {one.host} was started for another job.json "
                f"(sha256 {one.sha256[:12]}…).",
                hint="Does the launch line start anything else than the job's command?",
            )
    hosts = Counter(one.host for one in present)
    if len(hosts) != launch.nodes:
        log.warning(
            "The launcher has put %d ranks on %d hosts (%s); %d nodes were ordered.",
            launch.ranks,
            len(hosts),
            ", ".join(f"{host}: {count}" for host, count in sorted(hosts.items())),
            launch.nodes,
        )


_HINT = (
    "Look at `environment.launch` in the facility's site.yaml; {ranks}, "
    "{ranks_per_node} and {nodes} are filled in there."
)


def not_launched(launch: Launch) -> WorkerError:
    """Return the error of a launcher that gives no rank to what it starts."""
    return WorkerError(
        f"{launch.ranks} ranks were ordered, but no launcher's variables are set (such "
        "as RANK, SLURM_PROCID, PALS_RANKID, PMI_RANK, OMPI_COMM_WORLD_RANK), so this "
        "process does not know which of them it is.",
        hint=_HINT,
    )


@cache
def machine() -> str:
    """Return what tells this machine from others: its name, and its last start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{os.uname().nodename} {boot}"


def _host(rank: Rank) -> str:
    """Return the node's name; by Slurm's own word for it where that is of this rank."""
    own = os.environ.get("SLURMD_NODENAME") if rank.launcher == "srun" else None
    return own or os.uname().nodename


def _check_world(launch: Launch, world: int | None, launcher: str) -> None:
    if world not in (None, launch.ranks):
        raise WorkerError(
            f"{launcher} says that it started {world} processes; {launch.nodes} nodes "
            f"with {launch.ranks} ranks together were ordered.",
            hint=_HINT,
        )


def _twice(rank: int) -> WorkerError:
    return WorkerError(
        f"Two processes of this launch say that they are rank {rank}.",
        hint=_HINT,
    )


def _missing(
    launch: Launch, found: Mapping[int, Present], reason: str | None
) -> WorkerError:
    missing = [rank for rank in range(launch.ranks) if rank not in found]
    why = reason or f"waited {ARRIVE_S:.0f} s"
    return WorkerError(
        f"Of {launch.ranks} ranks {len(found)} have come; missing are "
        f"{_few(missing)} ({why}).",
        hint="The log files rank-*.log and log.txt of the job may say why. A node may "
        "be slow or broken; if it is always so, look at `environment.launch`.",
        transient=True,
    )


def _few(numbers: Iterable[int]) -> str:
    words = [str(number) for number in numbers]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")


def _read(path: Path) -> Present | None:
    """Return what a rank says; None while it still writes it."""
    try:
        data = read_json(path) or {}
        return Present(**{name: data[name] for name in Present.__slots__})
    except (IntegrityError, KeyError):
        return None
