"""The backfill scheduler of the simulator beside a real Slurm, on the same jobs.

Slurm looks every two seconds and writes down when it did, when each job came, when it
started and when it was over. Time is counted in these looks. In the simulator the same
jobs come between the same looks and run for as many; it has to start the same jobs at
each of them, in the same order. A difference would not be lost: the plan of every look
depends on all that was started before.

What is not compared: Slurm's main loop, which starts the head of the queue between two
looks, is switched off; and ends of walltimes that lie within a minute, which Slurm
takes for the same when it plans. All walltimes differ by more than the test lasts, so
there are none.
"""

from __future__ import annotations

import random
import re
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

import pytest
from slurm import Cluster
from towns import Clusters

from hansa.simulator.heap import Heap
from hansa.simulator.queues import Entry, make_queue
from hansa.spec.simulation import BackfillQueue

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

NODES = 36
JOBS = 200
LOOK_S = 2.0
SIZES = (1, 1, 1, 2, 2, 3, 4, 4, 6, 8, 12, 16)
LOOKS_RUN = (1, 1, 1, 1, 1, 2, 2, 2, 3, 4)
SETTINGS = (
    "bf_interval=2,bf_max_time=60,bf_resolution=1,bf_window_linear=1,bf_window=43200,"
    "bf_continue,sched_interval=-1,sched_min_interval=2000000000"
)


@dataclass
class Told:
    """What the controller's log says, in order; times in seconds.

    Attributes:
        looks: When the backfill scheduler looked.
        came: When each job was submitted, by id.
        started: When each was started, in the order in which that was done.
        over: When each was over.
    """

    looks: list[float] = field(default_factory=list)
    came: dict[str, float] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)

    def read(self, log: str) -> None:
        kinds = (
            (r"_slurm_rpc_submit_batch_job: JobId=(\d+) ", self.came),
            (r"_start_job: Started JobId=(\d+) ", self.started),
            (r"_job_complete: JobId=(\d+) done", self.over),
        )
        for line in log.splitlines():
            match = re.match(r"\[([\d:.T-]+)\] (.*)", line)
            if match is None:
                continue
            at = datetime.fromisoformat(match[1]).timestamp()
            if "_attempt_backfill: beginning" in match[2]:
                self.looks.append(at)
            for pattern, times in kinds:
                if found := re.search(pattern, match[2]):
                    times[found[1]] = at

    def in_looks(self, at: float) -> float:
        """Return a time as so many looks, with the share of the way to the next."""
        before = bisect_right(self.looks, at) - 1
        begin, end = [*self.looks, self.looks[-1] + LOOK_S][before : before + 2]
        return before + min((at - begin) / (end - begin), 0.999)


@dataclass(frozen=True)
class Asked:
    nodes: int
    minutes: int
    seconds: float
    pause: float


def drawn() -> Iterator[Asked]:
    """Draw jobs that end in the middle between two looks."""
    draw = random.Random(20)  # noqa: S311 - not for secrets
    minutes = [10 + 5 * k for k in range(JOBS)]
    draw.shuffle(minutes)
    for limit in minutes:
        runs = LOOK_S * draw.choice(LOOKS_RUN) - 0.6 * LOOK_S
        yield Asked(draw.choice(SIZES), limit, runs, draw.expovariate(3.5))


def settle(cluster: Cluster) -> None:
    """Have the cluster plan finely, and by its backfill scheduler alone."""
    text = cluster.conf.read_text()
    text = re.sub("SchedulerParameters=.*", f"SchedulerParameters={SETTINGS}", text)
    text = text.replace("SlurmctldDebug=info", "SlurmctldDebug=verbose")
    text = text.replace("MaxTime=60:00", "MaxTime=INFINITE")
    cluster.conf.write_text(f"{text}DebugFlags=Backfill\n")
    cluster.run("scontrol", "reconfigure")
    # The main loop still has one turn, a second after anything has happened: let that
    # be over before it counts. Each of these takes a look or two.
    for _ in range(3):
        cluster.wait(cluster.submit("true", "--nodes=1", "--time=1"), "COMPLETED")


def work(cluster: Cluster, jobs: list[Asked]) -> tuple[list[str], Told]:
    """Submit the jobs, wait for their end; return their ids and what was told."""
    ids = []
    due = time.monotonic()
    for job in jobs:
        due += job.pause
        time.sleep(max(0.0, due - time.monotonic()))
        ids.append(
            cluster.submit(
                f"exec sleep {job.seconds:.2f}", f"--nodes={job.nodes}", "--exclusive",
                f"--time={job.minutes}",
            )
        )  # fmt: skip
    cluster.until(lambda: not cluster.run("squeue", "-h"), 240, "all jobs are over")
    told = Told()
    told.read((cluster.dir / "log" / "slurmctld.log").read_text())
    return ids, told


def simulated(jobs: list[Asked], ids: list[str], told: Told) -> dict[str, float]:
    """Return at which look each job starts in the simulator, in the order of starts."""
    heap = Heap()
    spec = {"nodes": NODES, "interval": 1.0, "synthetic": {"load": 1e-9}}
    queue = make_queue(
        BackfillQueue.model_validate({"type": "backfill", **spec}),
        heap, facility="harbour", seed=1, start_hour=8.0,
    )  # fmt: skip
    starts: dict[str, float] = {}

    def submit(ident: str, job: Asked) -> None:
        def begin() -> None:
            starts[ident] = heap.now
            began = int(told.in_looks(told.started[ident]))
            over = told.in_looks(told.over[ident])
            heap.after(over - began, lambda: queue.leave(entry))

        entry = Entry(ident, job.nodes, job.minutes * 60.0, heap.now, begin)
        queue.submit(entry)

    for ident, job in zip(ids, jobs, strict=True):
        heap.at(
            told.in_looks(told.came[ident]),
            lambda ident=ident, job=job: submit(ident, job),
        )
    while heap.step():
        pass
    return starts


def close_calls(ids: list[str], told: Told) -> list[str]:
    """Return the jobs that ended so late before a look that it may not have seen it.

    On a busy machine a job begins late; and its nodes are free a while after its end.
    """
    return [ident for ident in ids if told.in_looks(told.over[ident]) % 1 > 0.75]


def test_it_starts_the_jobs_that_a_real_slurm_starts(clusters: Clusters) -> None:
    jobs = list(drawn())
    cluster = clusters("harbour", nodes=NODES, cpus=1)["harbour"]
    settle(cluster)
    for _ in range(3):
        ids, told = work(cluster, jobs)
        if not close_calls(ids, told):
            break
    starts = simulated(jobs, ids, told)

    real = {ident: at for ident, at in told.started.items() if ident in ids}
    apart = [abs(told.looks[int(starts[ident])] - real[ident]) for ident in ids]
    waits = [real[ident] - told.came[ident] for ident in ids]
    overtook = sum(
        real[later] < real[earlier]
        for place, earlier in enumerate(ids)
        for later in ids[place + 1 :]
    )
    print(  # noqa: T201 - shown by `pytest -rP`
        f"{len(apart)} starts at {len(told.looks)} looks; {overtook} times a job "
        f"overtook another; waits: median {median(waits):.1f} s, longest "
        f"{max(waits):.1f} s; apart: median {median(apart):.3f} s, most "
        f"{max(apart):.3f} s"
    )
    # There were queues, and much overtaking, so that agreement means something.
    assert median(waits) > 5 * LOOK_S
    assert overtook > JOBS
    # Within the resolution of a real scheduler: its next look.
    assert max(apart) < LOOK_S
    assert [int(starts[ident]) for ident in ids] == [
        int(told.in_looks(real[ident])) for ident in ids
    ]
    assert list(starts) == list(real)
