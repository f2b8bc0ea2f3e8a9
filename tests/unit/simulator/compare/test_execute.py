"""Processes: one thread each, a death is told."""

from __future__ import annotations

import multiprocessing as mp
import os
from pathlib import Path

import fake_contest
import pytest
from fake_contest import federation

from hansa.core.errors import SimulationError
from hansa.simulator.compare.execute import Task, Workers
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
