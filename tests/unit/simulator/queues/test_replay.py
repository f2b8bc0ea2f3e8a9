from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.errors import SimulationError
from hansa.simulator.heap import Heap
from hansa.simulator.queues import Entry, make_queue
from hansa.simulator.queues.replay import ReplayQueue
from hansa.spec.simulation import ReplayQueue as ReplaySpec

Waits = Callable[..., list[float]]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "waits.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def replay(heap: Heap, seed: int = 3, **keys: Any) -> ReplayQueue:
    spec = ReplaySpec(type="replay", **keys)
    return ReplayQueue(spec, heap, facility="polaris", seed=seed)


def test_a_list_is_gone_through_again_and_again(waits: Waits) -> None:
    heap = Heap()
    queue = replay(heap, waits=(5.0, 0.0, 9.0))
    assert waits(queue, heap, [0.0] * 7) == [5.0, 0.0, 9.0, 5.0, 0.0, 9.0, 5.0]


def test_drawn_waits_come_equally_often_and_by_the_seed(waits: Waits) -> None:
    found = []
    for seed in (3, 3, 4):
        heap = Heap()
        queue = replay(heap, seed, waits=(1.0, 2.0, 4.0), order="drawn")
        found.append(waits(queue, heap, [0.0] * 9000))
    assert found[0] == found[1]
    assert found[0] != found[2]
    # 3000 of each, with error sqrt(9000 1/3 2/3) = 45; four of them are 180.
    values, counts = np.unique(found[0], return_counts=True)
    assert values.tolist() == [1.0, 2.0, 4.0]
    assert all(abs(count - 3000) < 180 for count in counts)


TIMES = "submitted_s,wait_s\n1060,20\n1000,10\n1120,30\n1180,40\n9180,50\n9240,60\n"


def test_in_time_a_job_takes_the_next_measurement(waits: Waits, write: Write) -> None:
    # The trace begins at 1000, which is 0 here: 10 at 0, 20 at 60, 30 at 120, ...
    heap = Heap()
    queue = replay(heap, file=write(TIMES), order="time")
    found = waits(queue, heap, [0.0, 1.0, 60.0, 60.5, 180.0, 8180.0, 8181.0])
    assert found == [10.0, 20.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    assert queue.gaps_hit == 0


def test_in_a_gap_it_takes_the_one_before_and_counts(
    waits: Waits, write: Write
) -> None:
    # Spans are 60, 60, 60, 8000, 60: their median is 60, and 8000 > 10 60.
    heap = Heap()
    queue = replay(heap, file=write(TIMES), order="time")
    assert waits(queue, heap, [181.0, 8000.0, 8180.0]) == [40.0, 40.0, 50.0]
    assert queue.gaps_hit == 2


def test_past_its_end_the_trace_begins_anew(waits: Waits, write: Write) -> None:
    # The last is at 8240; the first comes again a usual span later, at 8300.
    heap = Heap()
    queue = replay(heap, file=write(TIMES), order="time")
    assert waits(queue, heap, [8241.0, 8300.0, 8301.0, 8490.0]) == [
        10.0,
        10.0,
        20.0,
        40.0,
    ]
    assert queue.gaps_hit == 1


def test_one_measurement_alone_serves_all_times(waits: Waits, write: Write) -> None:
    heap = Heap()
    queue = replay(heap, file=write("wait_s,submitted_s\n7,5\n"), order="time")
    assert waits(queue, heap, [0.0, 0.25, 1e6]) == [7.0, 7.0, 7.0]


SIZES = """\
wait_s,nodes,time_s
1,1,3600
2,2,3600
64,64,3600
65,64,86400
"""


@pytest.mark.parametrize(
    ("nodes", "walltime", "expected"),
    [
        (1, 3600.0, [1.0, 2.0, 1.0]),  # 2 nodes are within a factor of two of 1
        (2, 7200.0, [1.0, 2.0, 1.0]),
        (5, 3600.0, [2.0, 2.0, 2.0]),  # none within two; 2.5 times 2 is nearest
        (128, 3600.0, [64.0, 64.0, 64.0]),
        (64, 43200.0, [65.0, 65.0, 65.0]),
    ],
)
def test_a_job_takes_the_waits_of_like_jobs(
    waits: Waits, write: Write, nodes: int, walltime: float, expected: list[float]
) -> None:
    heap = Heap()
    queue = replay(heap, file=write(SIZES))
    assert waits(queue, heap, [0.0] * 3, nodes=nodes, walltime=walltime) == expected


def test_like_jobs_keep_the_time_of_the_whole_trace(waits: Waits, write: Write) -> None:
    # Jobs of 64 nodes at 100 and 300 only; the trace is 400 long (spans of 100).
    text = "submitted_s,wait_s,nodes\n0,1,1\n100,2,64\n200,3,1\n300,4,64\n"
    heap = Heap()
    queue = replay(heap, file=write(text), order="time")
    found = waits(queue, heap, [0.0, 100.0, 101.0, 301.0, 501.0], nodes=64)
    assert found == [2.0, 2.0, 4.0, 2.0, 4.0]


def test_what_was_measured_at_once_leaves_no_gap(waits: Waits, write: Write) -> None:
    # Spans of 100 between three pairs. If the zeros between twins counted, the median
    # would be 0 and each span a gap.
    text = "submitted_s,wait_s\n0,1\n0,2\n100,3\n100,4\n200,5\n200,6\n"
    heap = Heap()
    queue = replay(heap, file=write(text), order="time")
    assert waits(queue, heap, [0.0, 50.0, 101.0, 201.0]) == [1.0, 3.0, 5.0, 1.0]
    assert queue.gaps_hit == 0


def test_like_jobs_may_be_long_gone_or_long_in_coming(
    waits: Waits, write: Write
) -> None:
    # The trace is 4000 long (spans of 100, 40 rows). Jobs of 64 nodes at 2000, 2100 and
    # 2200 only: from there to the next round's it is 3800, more than ten spans. Before
    # the first there is nothing but it.
    rows = [f"{100 * k},{k},{64 if k in {20, 21, 22} else 1}\n" for k in range(40)]
    heap = Heap()
    file = write("submitted_s,wait_s,nodes\n" + "".join(rows))
    queue = replay(heap, file=file, order="time")
    times = [10.0, 1990.0, 2000.0, 2001.0, 2201.0, 3999.0, 6000.0]
    found = waits(queue, heap, times, nodes=64)
    assert found == [20.0, 20.0, 20.0, 21.0, 22.0, 22.0, 20.0]
    assert queue.gaps_hit == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no measured waits"),
        ("wait_s\n", "holds no measured waits"),
        ("wait\n3\n", "waits.csv:1: there is no column `wait_s`"),
        ("wait_s\n3\n-4\n", "waits.csv:3: `wait_s` is -4, and no wait is negative"),
        ("nodes,wait_s\n1,3\n\n1,\n", "waits.csv:4: `wait_s` is empty"),
        ("nodes,wait_s\n1,3\n1\n", "waits.csv:3: `wait_s` is empty"),
        ("wait_s\nsoon\n", "waits.csv:2: `wait_s` is 'soon', which is no number"),
        ("wait_s\nnan\n", "waits.csv:2: `wait_s` is 'nan', which is no number"),
        ("wait_s\ninf\n", "waits.csv:2: `wait_s` is 'inf', which is no number"),
        ("wait_s,nodes\n1,0\n", "waits.csv:2: `nodes` is 0, and no job asks for that"),
        ("wait_s,time_s\n1,\n", "waits.csv:2: `time_s` is empty"),
        ("wait_s,submitted_s\n1,x\n", "waits.csv:2: `submitted_s` is 'x'"),
    ],
)
def test_bad_files_are_refused_by_line(write: Write, text: str, says: str) -> None:
    with pytest.raises(SimulationError) as caught:
        replay(Heap(), file=write(text))
    assert says in caught.value.message
    assert caught.value.hint


def test_files_that_are_no_text_or_not_there_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"wait_s\n\xff\xfe\n")
    with pytest.raises(SimulationError, match="is no CSV file"):
        replay(Heap(), file=binary)
    with pytest.raises(SimulationError, match="can't be read: No such file"):
        replay(Heap(), file=tmp_path / "none.csv")


def test_a_spreadsheet_with_a_mark_and_more_columns_is_read(
    waits: Waits, write: Write
) -> None:
    heap = Heap()
    queue = replay(heap, file=write("\ufeffwait_s,note\r\n 12 ,hello\r\n"))
    assert waits(queue, heap, [0.0]) == [12.0]


def test_the_order_of_time_needs_times(write: Write) -> None:
    with pytest.raises(SimulationError, match=r"waits\.csv:1: .* `submitted_s`"):
        replay(Heap(), order="time", file=write("wait_s\n1\n"))


def test_without_sizes_all_jobs_go_through_one_list(waits: Waits) -> None:
    heap = Heap()
    queue = replay(heap, waits=(1.0, 2.0, 3.0))
    assert waits(queue, heap, [0.0], nodes=1) == [1.0]
    assert waits(queue, heap, [0.0], nodes=64) == [2.0]
    assert waits(queue, heap, [0.0], walltime=60.0) == [3.0]


def test_a_job_that_leaves_never_starts_but_has_had_its_wait(waits: Waits) -> None:
    heap = Heap()
    spec = ReplaySpec(type="replay", waits=(5.0, 6.0))
    queue = make_queue(spec, heap, facility="a", seed=1, start_hour=0.0)
    gone = Entry("gone", 1, 60.0, 0.0, lambda: pytest.fail("it had left"))
    queue.submit(gone)
    queue.leave(gone)
    assert waits(queue, heap, [0.0]) == [6.0]
