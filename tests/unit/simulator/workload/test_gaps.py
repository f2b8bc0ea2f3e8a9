from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from swf import write_swf

from hansa.simulator.workload import TraceJob, Workload, read_workload, remarks, repeat
from hansa.simulator.workload.gaps import find_gaps

HOUR, DAY = 3600.0, 86400.0


def jobs_at(*times: float) -> tuple[TraceJob, ...]:
    return tuple(TraceJob(time, 1, 60.0, 60.0) for time in times)


def test_a_long_silence_is_a_gap() -> None:
    # An hour apart; 20 times that is less than a day, so more than a day counts.
    before = [hour * HOUR for hour in range(50)]
    after = [before[-1] + 2 * DAY + hour * HOUR for hour in range(50)]
    assert find_gaps([*before, *after]) == ((before[-1], after[0]),)


def test_what_is_usual_is_no_gap() -> None:
    # 19 hours apart: 20 times that are 15.8 days. A weekend is none, 16 days are one.
    times = [19 * HOUR * k for k in range(100)]
    assert find_gaps([*times, times[-1] + 3 * DAY]) == ()
    assert find_gaps([*times, times[-1] + 16 * DAY]) == (
        (times[-1], times[-1] + 16 * DAY),
    )
    assert find_gaps([0.0]) == find_gaps([]) == find_gaps([5.0, 5.0]) == ()


def test_random_arrivals_have_no_gaps() -> None:
    # Slow enough that a day does not protect them: one in two days, for 50 years.
    spans = np.random.default_rng(1).exponential(2 * DAY, 10_000)
    assert find_gaps(np.cumsum(spans).tolist()) == ()


def test_a_gap_in_a_file_is_told(tmp_path: Path) -> None:
    times = [*range(0, 6000, 600), *range(900_000, 906_000, 600)]
    path = write_swf(tmp_path / "jobs.swf", [(time, 10, 1, 60) for time in times])
    found = read_workload(path, 1)
    assert found.gaps == ((5400.0, 900_000.0),)
    (said,) = remarks(path, found)
    assert "1 times nobody submitted anything for very long, up to 10.4 days" in said


def test_whole_days_of_a_gap_are_taken_out() -> None:
    jobs = jobs_at(0.0, 10.0, 10.0 + 3.5 * DAY, 20.0 + 3.5 * DAY)
    workload = Workload(jobs, gaps=((10.0, 10.0 + 3.5 * DAY),))
    again = list(islice(repeat(workload, 4, -100.0), 5))
    # Three days are left out. Then it spans 20 s and half a day, a third of which lies
    # between the last job and the first of the next round.
    span = 20.0 + 0.5 * DAY
    assert [job.submitted for job in again] == pytest.approx(
        [-100.0, -90.0, -90.0 + 0.5 * DAY, -100.0 + span, -100.0 + span * 4 / 3]
    )
    assert [job.submitted for job in jobs] == [0.0, 10.0, 302410.0, 302420.0]


def test_jobs_that_all_came_at_once_come_again_when_there_is_room() -> None:
    # 3 + 5 node-minutes on two nodes are 4 minutes; the longest asks for 3.
    jobs = (TraceJob(0.0, 1, 60.0, 180.0), TraceJob(0.0, 5, 60.0, 60.0))
    again = islice(repeat(Workload(jobs), 2, 0.0), 4)
    assert [job.submitted for job in again] == [0.0, 0.0, 240.0, 240.0]
