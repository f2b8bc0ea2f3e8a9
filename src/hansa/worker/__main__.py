"""``python -m hansa.worker run JOB_JSON [--sha256 HEX]`` and ``... init ...``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hansa.core.errors import HansaError
from hansa.worker.initial import Request, write_initial
from hansa.worker.job import SCHEMA, Job, read_file
from hansa.worker.session import Session, as_hansa_error
from hansa.worker.signals import Stop, deadline, listening
from hansa.worker.status import Status

log = logging.getLogger("hansa.worker")

RANKS = (
    "RANK",
    "SLURM_PROCID",
    "PMI_RANK",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
)
"""Where launchers write which one of several processes this is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0 done, 1 failed.

    `run` reports through the job's status file; with `--sha256` a job file that was
    changed meanwhile is refused. A worker is one process: copies of it that a launcher
    started, ranks above 0, leave at once. `init` answers on stdout with
    ``{"schema": 1, "ok": true, "data": {"files": [...]}}`` or
    ``{"schema": 1, "ok": false, "error": {...}}``. Words for people go to stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m hansa.worker")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="do the work of a batch job")
    run.add_argument("job", type=Path, metavar="JOB_JSON")
    run.add_argument("--sha256", metavar="HEX", help="hash that JOB_JSON must have")
    init = verbs.add_parser("init", help="make the first version of a model")
    init.add_argument("request", type=Path, metavar="REQUEST_JSON")
    init.add_argument("directory", type=Path, metavar="OUT_DIR")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if chosen.verb == "run":
        return _run(chosen.job, chosen.sha256)
    return _init(chosen.request, chosen.directory)


def _run(path: Path, sha256: str | None) -> int:
    started = _process_start()
    for name in RANKS:
        if (rank := os.environ.get(name, "")).isdecimal() and int(rank) > 0:
            log.info("%s is %s: the process of rank 0 does the work.", name, rank)
            return 0
    try:
        job = _read_job(path, sha256)
        stop = Stop(deadline(started, job.walltime_s))
        with listening(stop):
            Session(job, stop, started).run()
    except HansaError as error:
        log.error("%s %s", error.message, error.hint or "")  # noqa: TRY400
        return 1
    return 0


def _read_job(path: Path, sha256: str | None) -> Job:
    """Read the job; if that fails, say so in the status file beside it."""
    try:
        return read_file(path, Job, sha256)
    except HansaError as error:
        if path.parent.is_dir():
            Status(path.with_name("status.json"), None, 0.0).fail(error)
        raise


def _init(path: Path, directory: Path) -> int:
    reply: dict[str, object] = {"schema": SCHEMA, "ok": True}
    try:
        files = write_initial(read_file(path, Request), directory)
        reply["data"] = {"files": files}
    except Exception as error:
        failure = as_hansa_error(error)
        log.exception("The first version can't be made: %s", failure.message)
        reply.update(ok=False, error=failure.to_json())
    sys.stdout.write(json.dumps(reply) + "\n")
    return 0 if reply["ok"] else 1


def _process_start() -> float:
    """Return when this process began, by `time.monotonic`; now if /proc has no word."""
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - max(age, 0.0)


if __name__ == "__main__":
    raise SystemExit(main())
