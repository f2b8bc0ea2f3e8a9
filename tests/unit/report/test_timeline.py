"""Intervals on the server's clock."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core import events as ev
from hansa.report.timeline import Interval, gaps, length, spans, timeline

NUMBERS = st.floats(min_value=0, max_value=100, allow_nan=False)


def kinds(rows, facility):
    return [(one.kind, one.start, one.end) for one in rows.facilities[facility]]


def test_one_job_from_queue_to_update(new_story):
    story = new_story(facilities=("a",))
    story.staged(10, "a", 0, 4)
    story.job("train-0001-a-1", "a", 12, 30, 70)
    story.update(75, "train-0001-a-1", "a", transfer_s=3)
    story.finished(100)
    assert kinds(timeline(story.sorted()), "a") == [
        ("idle", 0, 6), ("transfer", 6, 10), ("idle", 10, 12), ("queue", 12, 30),
        ("train", 30, 70), ("idle", 70, 72), ("transfer", 72, 75), ("idle", 75, 100),
    ]  # fmt: skip


def test_a_job_without_an_end_ends_with_its_assignment(new_story):
    story = new_story(facilities=("a",))
    story.job("train-0001-a-1", "a", 0, 10, None)
    story.failed(40, "train-0001-a-1", "a", "WORKER", "gone")
    story.finished(50)
    rows = timeline(story.sorted())
    assert ("train", 10, 40) in kinds(rows, "a")
    assert ("idle", 40, 50) in kinds(rows, "a")


def test_a_job_without_an_end_ends_when_the_next_one_is_queued(new_story):
    story = new_story(facilities=("a",))
    story.job("train-0001-a-1", "a", 0, 10, None)
    story.job("train-0001-a-1", "a", 25, 30, None, number=2)
    story.add(ev.TimerFired(at=60, timer="t"))
    assert kinds(timeline(story.sorted()), "a") == [
        ("queue", 0, 10), ("train", 10, 25), ("queue", 25, 30), ("train", 30, 60),
    ]  # fmt: skip


def test_lost_time_is_what_nothing_is_known_of(new_story):
    story = new_story(facilities=("a",))
    story.job("train-0001-a-1", "a", 0, 10, 50)
    story.lost(30, "a", until=80)
    story.lost(90, "a")
    story.finished(100)
    assert kinds(timeline(story.sorted()), "a") == [
        ("queue", 0, 10), ("train", 10, 50), ("lost", 50, 80), ("idle", 80, 90),
        ("lost", 90, 100),
    ]  # fmt: skip


def test_marks_and_evaluations(harbour_events):
    rows = timeline(harbour_events)
    assert rows.resumed == (3300.0, 3310.0)
    assert rows.versions[6] == 6000.0
    assert ("evaluate", 6040.0, 6080.0) in kinds(rows, "polaris")


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_spans_and_gaps_share_out_the_time(pairs):
    intervals = [
        Interval(kind="train", start=min(pair), end=max(pair)) for pair in pairs
    ]
    busy = spans(intervals, "train")
    free = gaps(busy, 100.0)
    assert length(busy) + length(free) == pytest.approx(100.0)
    assert all(a[1] < b[0] for a, b in pairwise(busy))
    for start, end in free:
        assert not any(i.start < (start + end) / 2 < i.end for i in intervals)
