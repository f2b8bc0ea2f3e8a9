from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import plain_backfill
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_backfill import Task
from swf import Row, write_swf

from hansa.core.errors import SimulationError
from hansa.simulator.heap import Heap
from hansa.simulator.queues import Entry, make_queue
from hansa.simulator.queues.backfill import BackfillQueue
from hansa.spec.simulation import BackfillQueue as BackfillSpec

Waits = Callable[..., list[float]]

FAR = (1e7, 1.0, 1, 1.0)
"""A last job, so that the others do not come again while a test looks."""


def of_file(heap: Heap, path: Path, nodes: int = 4, **keys: Any) -> BackfillQueue:
    spec = BackfillSpec(
        type="backfill", nodes=nodes, workload=path, **{"warm_up": 0.0, **keys}
    )
    return BackfillQueue(spec, heap, facility="polaris", seed=1, start_hour=8.0)


def drawn(heap: Heap, seed: int = 1, **keys: Any) -> BackfillQueue:
    spec = BackfillSpec.model_validate({"type": "backfill", "nodes": 64, **keys})
    queue = make_queue(spec, heap, facility="polaris", seed=seed, start_hour=8.0)
    assert isinstance(queue, BackfillQueue)
    return queue


class Bench:
    """Jobs of ours in a queue, and what becomes of them."""

    def __init__(self, heap: Heap, queue: BackfillQueue) -> None:
        self.heap, self.queue = heap, queue
        self.started: dict[str, float] = {}

    def job(self, key: str, nodes: int, walltime: float, runs: float | None) -> Entry:
        """Submit a job now; it leaves after a while, or when the test says so."""

        def begin() -> None:
            assert entry.started == self.heap.now
            assert key not in self.started
            self.started[key] = self.heap.now
            if runs is not None:
                self.heap.after(runs, lambda: self.queue.leave(entry))

        entry = Entry(key, nodes, walltime, self.heap.now, begin)
        self.queue.submit(entry)
        assert key not in self.started
        return entry

    def run(self) -> None:
        while self.heap.step():
            pass


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """Make a machine of four nodes with these jobs of others, or none."""

    def made(*rows: Row, **keys: Any) -> Bench:
        heap = Heap()
        if not rows:
            return Bench(heap, drawn(heap, nodes=4, synthetic={"load": 1e-9}, **keys))
        path = write_swf(tmp_path / "jobs.swf", [*rows, FAR])
        return Bench(heap, of_file(heap, path, **keys))

    return made


# Three of four nodes until 60, though 100 were asked; then all of them for 50 s.
OTHERS: tuple[Row, ...] = ((0, 60, 3, 100), (10, 50, 4, 50))


def test_a_short_job_starts_at_once_and_a_long_one_after_the_wide_job(
    bench: Callable[..., Bench],
) -> None:
    # At 20 a node is free until the wide job is due, at 100.
    queue = bench(*OTHERS)
    queue.heap.at(20.0, lambda: queue.job("short", 1, 80.0, 10.0))
    queue.run()
    assert queue.started == {"short": 20.0}

    # The first leaves at 60, the wide one has all from 60 to 110.
    queue = bench(*OTHERS)
    queue.heap.at(20.0, lambda: queue.job("long", 1, 81.0, 10.0))
    queue.run()
    assert queue.started == {"long": 110.0}


def test_our_job_holds_its_nodes_until_it_leaves(bench: Callable[..., Bench]) -> None:
    # Ours has two nodes; the wide job gets its four only when it left, at 200, though
    # 80 s were asked. So our second one waits until 250.
    queue = bench((10, 1, 1, 1), (60, 50, 4, 50))
    queue.job("first", 2, 80.0, 200.0)
    queue.heap.at(70.0, lambda: queue.job("second", 3, 300.0, 1.0))
    queue.run()
    assert queue.started == {"first": 0.0, "second": 250.0}


def test_others_have_run_before_the_federation_begins(
    bench: Callable[..., Bench],
) -> None:
    # The same 90 s earlier: the wide job runs from -30 to 20.
    queue = bench(*OTHERS, warm_up=90.0)
    queue.job("ours", 1, 5.0, 1.0)
    queue.run()
    assert queue.started == {"ours": 20.0}


def test_a_job_starts_after_submit_has_returned(bench: Callable[..., Bench]) -> None:
    queue = bench()
    entry = queue.job("ours", 4, 60.0, 1.0)
    assert entry.started is None
    assert queue.heap.step()
    assert (entry.started, queue.heap.now) == (0.0, 0.0)


def test_as_long_as_none_of_ours_waits_the_heap_hears_nothing(
    bench: Callable[..., Bench],
) -> None:
    queue = bench(*OTHERS)
    assert not queue.heap.step()
    entry = queue.job("ours", 1, 60.0, None)
    queue.run()
    assert entry.started == 0.0
    queue.queue.leave(entry)
    queue.queue.leave(entry)  # nothing is left to forget
    assert not queue.heap.step()


def test_a_job_that_is_withdrawn_makes_room(bench: Callable[..., Bench]) -> None:
    # The first of ours would take all nodes at 110, so the second must wait for that.
    queue = bench(*OTHERS)

    def submit() -> None:
        wide = queue.job("wide", 4, 1000.0, 1.0)
        queue.job("long", 1, 500.0, 1.0)
        queue.heap.at(30.0, lambda: queue.queue.leave(wide))

    queue.heap.at(20.0, submit)
    queue.run()
    assert queue.started == {"long": 110.0}


def test_one_that_starts_may_withdraw_another_that_starts_with_it(
    bench: Callable[..., Bench],
) -> None:
    queue = bench()
    other = Entry("other", 1, 60.0, 0.0, lambda: queue.started.update(other=0.0))
    one = Entry("one", 1, 60.0, 0.0, lambda: queue.queue.leave(other))
    queue.queue.submit(one)
    queue.queue.submit(other)
    queue.run()
    assert (one.started, queue.started) == (0.0, {})
    # Its nodes are free again: three and the one that is not taken.
    queue.job("all but one", 3, 60.0, 1.0)
    queue.run()
    assert queue.started == {"all but one": 0.0}


@pytest.mark.parametrize(
    ("at", "starts"), [(0.0, 0.0), (0.1, 0.3), (0.3, 0.3), (0.9, 0.9), (1.0, 1.2)]
)
def test_the_scheduler_looks_at_intervals(
    bench: Callable[..., Bench], at: float, starts: float
) -> None:
    queue = bench(interval=0.3)
    queue.heap.at(at, lambda: queue.job("ours", 1, 60.0, 1.0))
    queue.run()
    assert queue.started == {"ours": pytest.approx(starts, abs=1e-12)}


def test_a_trace_that_ends_begins_anew(tmp_path: Path) -> None:
    # One job that takes all nodes for 100 s, again and again. Ours came at 50, before
    # the second of theirs.
    heap = Heap()
    path = write_swf(tmp_path / "jobs.swf", [(0, 100, 4, 100)])
    queue = Bench(heap, of_file(heap, path))
    heap.at(50.0, lambda: queue.job("first", 1, 10.0, 10.0))
    heap.at(5001.0, lambda: queue.job("second", 1, 10.0, 10.0))
    queue.run()
    # From 100 on theirs start 10 s late: those that came at 100, 200, ..., 5000 start
    # at 110, 210, ..., 5010. The last came before ours.
    assert queue.started == {"first": 100.0, "second": 5110.0}


PATHS = count()


@st.composite
def parties(draw: st.DrawFn) -> tuple[list[Task], list[Task]]:
    """Draw jobs of others at whole seconds, and of ours at moments of their own."""
    others, at = [], 0
    for _ in range(draw(st.integers(1, 12))):
        walltime = draw(st.integers(1, 12))
        runs, nodes = draw(st.integers(1, walltime)), draw(st.integers(1, 8))
        others.append(Task(float(at), nodes, float(walltime), float(runs)))
        at += draw(st.integers(0, 6))
    ours = []
    for k in range(draw(st.integers(1, 5))):
        # Sums of different powers of two are different: nothing happens at once.
        own, its_end = 2.0 ** (-2 * k - 1), 2.0 ** (-2 * k - 2)
        came, runs = draw(st.integers(0, 40)), draw(st.integers(0, 11))
        nodes = draw(st.integers(1, 8))
        ours.append(Task(came + own, nodes, 12.0, runs + its_end))
    return others, sorted(ours, key=lambda task: task.submitted)


@given(parties())
def test_our_jobs_start_when_the_plain_algorithm_starts_them(
    tmp_path_factory: pytest.TempPathFactory, party: tuple[list[Task], list[Task]]
) -> None:
    others, ours = party
    folder = tmp_path_factory.getbasetemp()
    path = write_swf(
        folder / f"party{next(PATHS)}.swf",
        [*((t.submitted, t.runs, t.nodes, t.walltime) for t in others), FAR],
    )
    heap = Heap()
    queue = Bench(heap, of_file(heap, path, nodes=8))
    path.unlink()
    for k, task in enumerate(ours):
        heap.at(
            task.submitted,
            lambda key=str(k), task=task: queue.job(
                key, task.nodes, task.walltime, task.runs
            ),
        )
    queue.run()
    everyone = sorted([*others, *ours], key=lambda task: task.submitted)
    plain_backfill.run(everyone, 8)
    assert queue.started == {str(k): task.started for k, task in enumerate(ours)}


def waits_of(waits: Waits, times: Sequence[float], **keys: Any) -> list[float]:
    heap = Heap()
    return waits(drawn(heap, **keys), heap, times, nodes=16)


def test_drawn_jobs_of_others_make_ours_wait_and_the_seed_says_how_long(
    waits: Waits,
) -> None:
    # Ours never leave here, so there may be four of them.
    times = [0.0, 3600.0, 7200.0]
    busy = {"synthetic": {"load": 1.2}}
    once = waits_of(waits, times, **busy)
    assert once == waits_of(waits, times, **busy)
    assert once != waits_of(waits, times, **busy, seed=2)
    assert min(once) > 0
    assert waits_of(waits, times, synthetic={"load": 0.01}) == [0.0, 0.0, 0.0]


# --- what can't be -------------------------------------------------------------------


def test_a_job_that_can_never_run_is_refused(bench: Callable[..., Bench]) -> None:
    queue = bench()
    with pytest.raises(
        SimulationError, match="wide asks for 5 nodes, but polaris has 4"
    ):
        queue.job("wide", 5, 60.0, 1.0)
    with pytest.raises(SimulationError, match="brief asks for no walltime"):
        queue.job("brief", 1, 0.0, 1.0)
    queue.run()
    assert queue.started == {}


def test_a_workload_of_a_larger_machine_is_refused(tmp_path: Path) -> None:
    path = write_swf(tmp_path / "jobs.swf", [(0, 1, 4, 1), (1, 1, 640, 1)])
    with pytest.raises(SimulationError, match="a job has 640 nodes") as raised:
        of_file(Heap(), path)
    assert "queue.nodes to 640" in str(raised.value.hint)
    assert "node_cores" in str(raised.value.hint)
    of_file(Heap(), path, node_cores=160)


def test_an_empty_workload_is_refused(tmp_path: Path) -> None:
    path = write_swf(tmp_path / "jobs.swf", [(0, -1, 4, 1), (1, -20, 4, 1)])
    with pytest.raises(SimulationError, match="none of its 1 jobs"):
        of_file(Heap(), path)


def test_what_a_workload_lacks_is_told(tmp_path: Path) -> None:
    path = write_swf(
        tmp_path / "jobs.swf", [(0, 1, 4, 1), (1, -1, 4, 1), (2, -9, 1, 1)]
    )
    said = of_file(Heap(), path).remarks
    assert len(said) == 2
    assert "1 lines can't be read; the first is line 4" in said[0]
