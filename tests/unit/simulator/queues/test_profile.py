from __future__ import annotations

from heapq import heapify, heapreplace
from itertools import combinations
from math import inf

import plain_backfill
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_backfill import Task

from hansa.simulator.queues import profile
from hansa.simulator.queues.profile import OVERDUE, Job, Profile, Scheduler, pick

NODES = 8


@st.composite
def workloads(draw: st.DrawFn, least: int = 1, most: int = NODES) -> list[Task]:
    """Jobs that come at whole seconds, in order, and run for whole seconds."""
    tasks, at = [], 0
    for _ in range(draw(st.integers(1, 20))):
        at += draw(st.integers(0, 6))
        walltime = draw(st.integers(1, 12))
        runs = draw(st.integers(1, walltime))
        nodes = draw(st.integers(least, most))
        tasks.append(Task(float(at), nodes, float(walltime), float(runs)))
    return tasks


def bits(nodes: int) -> frozenset[int]:
    return frozenset(k for k in range(nodes.bit_length()) if nodes >> k & 1)


def run(tasks: list[Task], total: int) -> None:
    """Let the scheduler look whenever anything happens; set when each job starts."""
    scheduler = Scheduler(total)
    task_of: dict[Job, Task] = {}
    moments = {task.submitted for task in tasks}
    while moments:
        now = min(moments)
        moments.discard(now)
        for job, task in task_of.items():
            if task.ended == now:
                scheduler.finish(job)
        for task in tasks:
            if task.submitted == now and task not in task_of.values():
                job = Job(task.nodes, task.walltime)
                task_of[job] = task
                scheduler.submit(job)
        for job in scheduler.start(now):
            task = task_of[job]
            task.started, task.where = now, bits(job.end[2])
            moments.add(task.ended)
        in_use = [node for t in tasks if t.runs_at(now) for node in t.where]
        assert sorted([*in_use, *bits(scheduler.free)]) == list(range(total))
        assert [task_of[job] for job in scheduler.waiting] == [
            t for t in tasks if t.submitted <= now < t.started
        ]


@given(workloads())
def test_it_starts_whom_the_plain_algorithm_starts_and_where(tasks: list[Task]) -> None:
    plain = [Task(t.submitted, t.nodes, t.walltime, t.runs) for t in tasks]
    plain_backfill.run(plain, NODES)
    run(tasks, NODES)
    assert [(t.started, t.where) for t in tasks] == [
        (t.started, t.where) for t in plain
    ]


@given(workloads())
def test_no_job_starts_before_it_comes_and_no_node_is_used_twice(
    tasks: list[Task],
) -> None:
    run(tasks, NODES)
    for task in tasks:
        assert task.submitted <= task.started < inf
        assert len(task.where) == task.nodes
    for one, other in combinations(tasks, 2):
        apart = one.ended <= other.started or other.ended <= one.started
        assert apart or not one.where & other.where


@given(workloads())
def test_who_starts_now_takes_nothing_of_what_those_before_it_are_to_have(
    tasks: list[Task],
) -> None:
    # Some run and the others wait, in this order. Where would each of them be planned
    # if nobody came after it? What starts now leaves all of that alone.
    now = 100.0
    scheduler = Scheduler(NODES)
    running: list[Task] = []
    for task in tasks[::2]:
        job = Job(task.nodes, task.walltime)
        if task.nodes <= scheduler.free.bit_count():
            task.started = now - task.runs / 2
            scheduler.submit(job)
            assert scheduler.start(task.started) == [job]
            task.where = bits(job.end[2])
            running.append(task)
    running.sort(key=lambda task: task.started)
    queue = [task for task in tasks if task not in running]
    jobs = [Job(task.nodes, task.walltime) for task in queue]
    for job in jobs:
        scheduler.submit(job)
    scheduler.start(now)
    for last, job in enumerate(jobs):
        if job.end == profile.WAITS:
            continue
        until, _, nodes = job.end
        for begin, _, where in plain_backfill.plan(now, running, queue[:last], NODES):
            assert begin >= until or not where & bits(nodes)


@given(workloads(least=3, most=3))
def test_jobs_of_one_size_are_served_as_at_counters(tasks: list[Task]) -> None:
    # Nobody can overtake: 8 // 3 = 2 counters, each taking the next in line.
    counters = [0.0] * (NODES // 3)
    heapify(counters)
    expected = []
    for task in tasks:
        start = max(task.submitted, counters[0])
        heapreplace(counters, start + task.runs)
        expected.append(start)
    run(tasks, NODES)
    assert [task.started for task in tasks] == expected


@given(workloads())
def test_the_first_in_the_queue_never_waits_while_it_has_room(
    tasks: list[Task],
) -> None:
    run(tasks, NODES)
    for now in {task.submitted for task in tasks} | {task.ended for task in tasks}:
        waiting = [task for task in tasks if task.submitted <= now < task.started]
        in_use = sum(task.nodes for task in tasks if task.runs_at(now))
        assert not waiting or waiting[0].nodes > NODES - in_use


@given(workloads(most=1))
def test_no_node_idles_while_a_job_of_one_node_waits(tasks: list[Task]) -> None:
    run(tasks, 2)
    for now in {task.submitted for task in tasks} | {task.ended for task in tasks}:
        waits = any(task.submitted <= now < task.started for task in tasks)
        assert not waits or sum(task.runs_at(now) for task in tasks) == 2


# --- worked out by hand --------------------------------------------------------------


def queue_of(*sizes: tuple[int, float]) -> tuple[Scheduler, list[Job]]:
    """Put jobs of these nodes and walltimes into the queue of four nodes."""
    scheduler = Scheduler(4)
    jobs = [Job(nodes, walltime) for nodes, walltime in sizes]
    for job in jobs:
        scheduler.submit(job)
    return scheduler, jobs


def test_a_short_job_fills_the_hole_before_a_wide_one_and_a_long_one_does_not() -> None:
    # 3 nodes are taken until 10; the wide job is due then. One node is free until it
    # starts: 10 seconds fit in there, 11 do not.
    scheduler, (first, wide, long, short) = queue_of((3, 10), (4, 5), (1, 11), (1, 10))
    assert scheduler.start(0.0) == [first, short]
    assert scheduler.waiting == [wide, long]
    scheduler.finish(first)
    scheduler.finish(short)
    assert scheduler.start(10.0) == [wide]


def test_a_place_is_held_for_every_job_not_only_for_the_first() -> None:
    # Nodes 0 to 2 are taken until 10. The second job is then to have 0 and 1, the third
    # 2 and 3, so a fourth may use node 3 until 10 and no longer. A scheduler that held
    # nodes for the first waiting job alone would let it.
    scheduler, (first, *_) = queue_of((3, 10), (2, 5), (2, 5), (1, 11))
    assert scheduler.start(0.0) == [first]
    scheduler, (first, _, _, short) = queue_of((3, 10), (2, 5), (2, 5), (1, 10))
    assert scheduler.start(0.0) == [first, short]


def test_a_free_node_is_held_for_whom_it_was_promised_to() -> None:
    # Node 0 is free again, 1 to 3 are taken until 10. Then 0 to 2 are promised to the
    # next job. Were nodes only counted, the last could start: at 10 one more is free.
    scheduler, (short, first, wide, long) = queue_of((1, 1), (3, 10), (3, 5), (1, 100))
    assert scheduler.start(0.0) == [short, first]
    scheduler.finish(short)
    assert scheduler.start(1.0) == []
    scheduler.finish(first)
    assert scheduler.start(10.0) == [wide, long]


def test_when_a_job_ends_early_the_plan_is_made_anew() -> None:
    scheduler, (first, wide, small) = queue_of((3, 100), (4, 5), (2, 50))
    assert scheduler.start(0.0) == [first]
    scheduler.finish(first)
    assert scheduler.start(7.0) == [wide]
    scheduler.finish(wide)
    assert scheduler.start(9.0) == [small]


def test_who_comes_later_is_planned_behind_the_others() -> None:
    scheduler, (first, wide) = queue_of((3, 10), (4, 5))
    assert scheduler.start(0.0) == [first]
    long, short = Job(1, 9.0), Job(1, 8.0)
    scheduler.submit(long)
    scheduler.submit(short)
    assert scheduler.start(2.0) == [short]
    assert scheduler.waiting == [wide, long]


def test_a_job_that_was_taken_out_holds_no_place() -> None:
    scheduler, (_first, wide, long) = queue_of((3, 10), (4, 5), (1, 11))
    assert len(scheduler.start(0.0)) == 1
    scheduler.withdraw(wide)
    assert scheduler.start(1.0) == [long]


def test_a_job_that_outlives_its_walltime_keeps_its_nodes() -> None:
    scheduler, (first, wide, short) = queue_of((3, 10), (4, 5), (1, OVERDUE))
    assert scheduler.start(0.0) == [first, short]
    # At 20 the first is overdue and expected to go at 21; a job of one node and a
    # second may run before that, none of two seconds.
    scheduler.finish(short)
    two, one = Job(1, 2 * OVERDUE), Job(1, OVERDUE)
    scheduler.submit(two)
    scheduler.submit(one)
    assert scheduler.start(20.0) == [one]
    scheduler.finish(first)
    scheduler.finish(one)
    assert scheduler.start(21.5) == [wide]


def test_jobs_far_down_in_a_long_queue_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile, "DEPTH", 2)
    scheduler, (first, wide, _, short) = queue_of((3, 10), (4, 5), (4, 5), (1, 1))
    assert scheduler.start(0.0) == [first]
    assert scheduler.start(1.0) == []
    scheduler.withdraw(wide)
    assert scheduler.start(2.0) == [short]


def test_a_profile_is_a_staircase() -> None:
    # Node 0 is free, node 1 from 5 on, node 2 from 9 on; bits are written 2, 1, 0.
    plan = Profile(0.0, 0b001, [(5.0, 1, 0b010), (9.0, 2, 0b100)])
    assert (plan.steps.times, plan.steps.free) == ([0.0, 5.0, 9.0], [0b1, 0b11, 0b111])
    # Two nodes for 6 s: from 5 to 11, on nodes 0 and 1.
    assert plan.place(2, 6.0) == (5.0, 0b011)
    assert plan.steps.times == [0.0, 5.0, 9.0, 11.0]
    assert plan.steps.free == [0b001, 0b000, 0b100, 0b111]
    # One node for 5 s fits in before that; one for 6 s does not.
    assert plan.free == 1
    assert plan.place(1, 5.0) == (0.0, 0b001)
    assert plan.free == 0
    assert plan.place(1, 6.0) == (9.0, 0b100)
    assert plan.steps.times == [0.0, 5.0, 9.0, 11.0, 15.0]
    assert plan.steps.free == [0b000, 0b000, 0b000, 0b011, 0b111]


@pytest.mark.parametrize(
    ("free", "nodes", "chosen"),
    [
        (0b1111, 2, 0b0011),  # the first ones
        (0b0110_1110, 2, 0b0110_0000),  # the shortest row that has enough
        (0b0110_1110, 3, 0b0000_1110),
        (0b0110_1110, 4, 0b0010_1110),  # the longest whole, and then the first ones
        (0b0101_0101, 3, 0b0001_0101),  # rows of one: from the first on
        (0b0110_1110, 5, 0b0110_1110),
    ],
)
def test_nodes_side_by_side_are_preferred(free: int, nodes: int, chosen: int) -> None:
    assert pick(free, nodes) == chosen
