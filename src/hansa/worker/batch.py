"""One batch job from its start to its exit code: ranks, walltime, work."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from hansa.core.errors import HansaError
from hansa.mailbox.links import refuse_links
from hansa.mailbox.paths import JobDir
from hansa.worker import ranks
from hansa.worker.allocation import Allocation
from hansa.worker.job import AnyJob, Job, read_job, trainer_plugin
from hansa.worker.launch import Rank, find_rank
from hansa.worker.logs import only_to
from hansa.worker.ranks import Launch, Present
from hansa.worker.session import Session, as_hansa_error
from hansa.worker.signals import Stop, listening
from hansa.worker.status import Status
from hansa.worker.team.crew import Crew
from hansa.worker.team.follower import Follower
from hansa.worker.trial import Trial
from hansa.worker.walltime import own_walltime

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """How the batch script started this process.

    Attributes:
        path: ``job.json``.
        sha256: Hash that it must have; None takes any.
        attempt: A word of this start of the script.
        started: When the process began, by `time.monotonic`.
        environ: Its environment variables.
    """

    path: Path
    sha256: str | None
    attempt: str
    started: float
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Met:
    """Whom this process has met.

    Attributes:
        present: All ranks, told to the first one; none without a launcher.
        crew: Those that work together, if they do.
        first: Whether this is rank 0, or the only process.
    """

    present: Sequence[Present] = ()
    crew: Crew | None = None
    first: bool = True


Work = Callable[[AnyJob, Stop, Start, Met], None]


def run(start: Start) -> int:
    """Work on the job's orders; return the exit code."""
    return _main(start, _orders, together=True)


def trial(start: Start) -> int:
    """Look around and write what was found; return the exit code."""
    return _main(start, _look, together=False)


def _main(start: Start, work: Work, *, together: bool) -> int:
    stop = Stop()
    with listening(stop):
        try:
            job = read_job(start.path, start.sha256)
            refuse_links(job.job_dir)
        except HansaError as error:
            _say(error)
            _unreadable(start.path, error)
            return 1
        rank = find_rank(start.environ, job.ranks, job.launched)
        above = rank is not None and rank.rank > 0
        log_file = ranks.rank_log(job.job_dir, rank.rank) if rank and above else None
        with only_to(log_file) if log_file else nullcontext():
            try:
                met = _meet(job, start, rank, stop, together=together)
            except Exception as error:
                _failed(job, error, first=not above)
                return 1
            return _work(job, stop, start, met, work)


def _work(job: AnyJob, stop: Stop, start: Start, met: Met, work: Work) -> int:
    """Work as the rank that this is; return the exit code."""
    crew, code = met.crew, 0
    try:
        if met.first:
            work(job, stop, start, met)
        elif crew is not None:
            Follower(crew).run()
    except Exception as error:
        code = 1
        if crew is not None:
            crew.fail(as_hansa_error(error))
        _failed(job, error, first=met.first)
    if crew is not None and (code or crew.broken):
        crew.leave(code)
    if crew is not None and met.first:
        crew.end()
    return code


def _meet(
    job: AnyJob, start: Start, rank: Rank | None, stop: Stop, *, together: bool
) -> Met:
    """Check in with the other ranks; the first one is told of all of them.

    Raises:
        HansaError: They are not those that were ordered.
    """
    launch = Launch(
        job_dir=job.job_dir,
        attempt=start.attempt,
        nodes=job.nodes,
        ranks=job.ranks,
        sha256=start.sha256 or "",
    )
    if rank is None:
        if job.launched and job.ranks > 1:
            raise ranks.not_launched(launch)
        return Met()
    ranks.check_in(launch, rank)
    log.info(
        "Rank %d of %s on %s, started by %s.",
        rank.rank,
        job.ranks,
        os.uname().nodename,
        rank.launcher,
    )
    if together and job.ranks > 1 and _is_parallel(job):
        from hansa.worker.team import meeting  # noqa: PLC0415 - most jobs are one process

        crew = meeting.meet(launch, rank, stop)
        return Met(crew=crew, first=rank.rank == 0)
    if rank.rank > 0:
        log.info("This trainer is one process: that of rank 0. This one ends.")
        return Met(first=False)
    return Met(ranks.gather(launch, stop))


def _is_parallel(job: AnyJob) -> bool:
    """Tell whether all ranks may be needed; a job without an order does not know."""
    if not isinstance(job, Job):
        return True
    return trainer_plugin(job.order.model.trainer).parallel


def _orders(job: AnyJob, stop: Stop, start: Start, met: Met) -> None:
    walltime = own_walltime(job, start.started, environ=start.environ)
    stop.deadline = walltime.deadline()
    if isinstance(job, Job) and not job.linger_s:
        Session(job, stop, start.started, walltime, crew=met.crew).run()
    else:
        Allocation(job, stop, start.started, walltime, crew=met.crew).run()


def _look(job: AnyJob, stop: Stop, start: Start, met: Met) -> None:
    del stop
    status = Status(JobDir(job.job_dir).status, None, job.heartbeat_s)
    status.enter("starting")
    walltime = own_walltime(job, start.started, environ=start.environ)
    status.finish(Trial(job, walltime, met.present).look())


def _failed(job: AnyJob, error: Exception, *, first: bool) -> None:
    """Log a failure; the process that works says it in the status, too."""
    failure = as_hansa_error(error)
    if failure is error:
        _say(failure)
    else:
        log.error("The job failed: %s", failure.message, exc_info=error)
    if first:
        status = Status(JobDir(job.job_dir).status, None, 0.0)
        status.fail_unless_told(failure)


def _unreadable(path: Path, error: HansaError) -> None:
    """Say that the job can't begin, in the status file of the working directory.

    Where the mailbox is stands in ``job.json``, which may be no good; but the batch
    script has started this process in the job's directory there, which has the job's
    name.
    """
    here = Path.cwd()
    if here.name == path.parent.name and here != path.parent:
        Status(here / "status.json", None, 0.0).fail(error)


def _say(error: HansaError) -> None:
    log.error("%s %s", error.message, error.hint or "")
