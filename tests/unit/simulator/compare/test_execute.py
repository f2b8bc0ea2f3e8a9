"""Processes: one thread each, a death is told."""

from __future__ import annotations

import multiprocessing as mp
import os
import struct
from pathlib import Path

import fake_contest
import pytest
from fake_contest import federation

from hansa.core.errors import SimulationError
from hansa.simulator.compare.execute import Task, Workers
from hansa.simulator.compare.processes import Processes, hear
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.study import Study, Wishes, plan_study


def study(place: Path) -> Study:
    return plan_study(federation(place), (), Wishes(scenarios=("calm",)))


def tasks(of: Study) -> list[Task]:
    return [Task(one.configurations[0], of.seeds) for one in of.contestants]


def test_processes_have_one_thread_each_and_results_their_order(tmp_path: Path) -> None:
    of = study(tmp_path)
    before = dict(os.environ)
    told: list[int] = []
    with Workers(of, 2, fake_contest.simulate_and_look) as workers:
        found = workers.run(tasks(of), told.append)
    assert dict(os.environ) == before
    assert sum(told) == 8
    assert not mp.active_children()
    for runs in found:
        scores = [run for run in runs if isinstance(run, Score)]
        assert [one.seed for one in scores] == list(of.seeds)
        assert {one.reason for one in scores} == {"1 thread, deaf to Ctrl-C"}


def test_a_process_that_dies_is_an_error_that_says_so(tmp_path: Path) -> None:
    of = study(tmp_path)
    with (
        pytest.raises(SimulationError, match="process of the comparison died"),
        Workers(of, 2, fake_contest.die) as workers,
    ):
        workers.run(tasks(of), lambda _: None)
    assert not mp.active_children()


def test_work_that_fails_is_told_in_its_words() -> None:
    processes = Processes(2, 10)
    told: list[int] = []
    try:
        assert processes.each(fake_contest.divide, [1, 2, 5], told.append) == [10, 5, 2]
        assert sorted(told) == [2, 5, 10]
        with pytest.raises(SimulationError, match="ZeroDivisionError: integer div"):
            processes.each(fake_contest.divide, [5, 0], told.append)
    finally:
        processes.end(at_once=True)
    assert not mp.active_children()


def test_a_process_that_died_while_it_was_free() -> None:
    processes = Processes(1, 10)
    assert processes.each(fake_contest.divide, [5], lambda _: None) == [2]
    (child,) = mp.active_children()
    child.kill()
    child.join()
    with pytest.raises(SimulationError, match="process of the comparison died"):
        processes.each(fake_contest.divide, [5], lambda _: None)
    processes.end(at_once=False)


def test_an_answer_that_breaks_off_is_a_death_too() -> None:
    ours, theirs = mp.Pipe()
    os.write(theirs.fileno(), struct.pack("!i", 100) + b"half of it")
    theirs.close()
    with pytest.raises(SimulationError, match="process of the comparison died"):
        hear(ours)
