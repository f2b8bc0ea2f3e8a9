"""Whole federations with every strategy: slow queues, dead facilities, crashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Scenario
from retold import check_files, retold

from hansa.coordinator.plan import Stop
from hansa.core import plugins
from hansa.core.events import (
    AggregateFailed,
    AssignmentFailed,
    Event,
    FacilityLost,
    JobStarted,
    ModelStaged,
    RunFinished,
    UpdateArrived,
    VersionPublished,
)
from hansa.testing.scripted import Script

STRATEGIES = plugins.names(plugins.STRATEGIES)
ASYNCHRONOUS = ("fedasync", "fedbuff", "fedcompass", "fedqueue", "tide")
SYNCHRONOUS = [name for name in STRATEGIES if name not in ASYNCHRONOUS]

SHORT: dict[str, dict[str, Any]] = {
    "fedcompass": {"min_steps": 2, "max_steps": 20},
    "fedqueue": {"t_sync": 400.0, "theta": 20.0, "min_steps": 2},
}
"""Options for rounds of minutes; the others' own do."""

SCRIPTS = {
    "a": Script(drift=1.0, samples=10, step_s=2.0),
    "b": Script(drift=3.0, samples=30, step_s=3.0, queue_s=31.0),
    "c": Script(drift=-2.0, samples=20, step_s=7.0, queue_s=17.0),
}


def scenario(root: Path, name: str, rounds: int = 4, **scripts: Script) -> Scenario:
    return Scenario(
        root,
        {**SCRIPTS, **scripts},
        strategy=name,
        options=SHORT.get(name, {}),
        stop=Stop(rounds=rounds),
        patience=200.0,
        keep=1,
    )


def after(count: int) -> Callable[[Event], bool]:
    seen = 0

    def stop(event: Event) -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    return stop


def check_uses(run: Scenario) -> None:
    """Versions grow by one; only memory methods use an update twice."""
    published = run.of(VersionPublished)
    assert [e.version for e in published] == list(range(len(published)))
    used = [t.ref for e in published for t in e.terms if t.ref.startswith("update/")]
    if run.strategy not in {"mifa", "fedvarp"}:
        assert len(used) == len(set(used))
    arrived = {f"update/{e.assignment}" for e in run.of(UpdateArrived)}
    assert set(used) <= arrived


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_with_a_slow_queue(tmp_path: Path, name: str) -> None:
    slow = replace(SCRIPTS["c"], queue_s=5000.0)
    run = scenario(tmp_path, name, c=slow)
    assert run.run().outcome == "done"
    check_uses(run)
    check_files(run)
    (first, *_) = [e for e in run.of(VersionPublished) if e.version == 1]
    waits = name in SYNCHRONOUS and name != "semisync"
    assert (first.at > 5000.0) == waits


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_facility_that_dies_is_not_waited_for(tmp_path: Path, name: str) -> None:
    dead = replace(SCRIPTS["b"], silent=((40.0, 1e9),))
    rounds = 30 if name in ASYNCHRONOUS else 4
    run = scenario(tmp_path, name, rounds, b=dead)
    assert run.run().outcome == "partial"
    assert [e.facility for e in run.of(FacilityLost)] == ["b"]
    assert run.of(VersionPublished)[-1].version == rounds
    check_uses(run)
    check_files(run)


@pytest.mark.parametrize("name", STRATEGIES)
def test_dying_every_few_events_loses_and_doubles_nothing(
    tmp_path: Path, name: str
) -> None:
    broken = replace(SCRIPTS["a"], ends={"train-0002-a-1.1": "crash"})
    calm = scenario(tmp_path / "calm", name, rounds=3, a=broken)
    calm.run()
    shaken = scenario(tmp_path / "shaken", name, rounds=3, a=broken)
    for _ in range(60):
        core = shaken.run(until=after(9))
        if core.outcome:
            break
    assert core.outcome == "done"
    check_uses(shaken)
    check_files(shaken)
    for facility in shaken.facilities.values():
        assert facility.submissions == len(facility.jobs)
    if name in SYNCHRONOUS:
        for tensor, values in calm.model(3).items():
            np.testing.assert_array_equal(shaken.model(3)[tensor], values)


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_a_federation_whose_facilities_all_fail_ends(tmp_path: Path, name: str) -> None:
    gone = {
        one: replace(script, silent=((40.0, 1e9),)) for one, script in SCRIPTS.items()
    }
    run = scenario(tmp_path, name, **gone)
    assert run.run().outcome == "failed"
    assert "No facility" in run.of(RunFinished)[-1].reason


def test_fedasync_weighs_by_what_a_job_has_bound(tmp_path: Path) -> None:
    """alpha 0.6: a, alone for an hour, makes v1 to v3; then b, trained from 0.

    b waits in its queue for 1 s only, but trains 1000 s: its base is version 0. Its
    staleness is 3, so its share is 0.6 * 4^-0.5 = 0.3, and its terms are
    0.7 * version 3 + 0.3 * version 0 + 0.3 * update.
    """
    scripts = {
        "a": Script(drift=1.0, trains={"train-0004-a-1": 5000.0}),
        "b": Script(drift=5.0, train_s=1000.0),
    }
    run = Scenario(tmp_path, scripts, strategy="fedasync", stop=Stop(rounds=4), keep=1)
    assert run.run().outcome == "done"
    last = run.of(VersionPublished)[-1]
    assert {t.ref: round(t.coefficient, 9) for t in last.terms} == {
        "version/3": 0.7,
        "version/0": 0.3,
        "update/train-0001-b-1": 0.3,
    }
    # v1 = 0.6, v2 = 1.2, v3 = 1.8 (each a step of 0.6); v4 = 0.7 * 1.8 + 0.3 * 5
    np.testing.assert_allclose(run.model(4)["bias"], 2.76, rtol=1e-6)


def test_a_base_stays_although_nobody_has_seen_it_bound(tmp_path: Path) -> None:
    """b binds version 1 while nothing is heard of it; a makes a dozen more meanwhile.

    The store keeps one version, and what may be needed: b's update names its base.
    """
    away = {"silent": ((15.0, 150.0),), "line_away": ((15.0, 215.0),)}
    scripts = {
        "a": Script(drift=1.0),
        "b": Script(drift=5.0, queue_s=20.0, **away),
    }
    stop = Stop(rounds=24)
    run = Scenario(tmp_path, scripts, strategy="fedasync", stop=stop, keep=1)
    assert run.run().outcome == "done"
    (late,) = [e for e in run.of(UpdateArrived) if e.assignment == "train-0001-b-1"]
    newest = [e.version for e in run.of(VersionPublished) if e.at < late.at][-1]
    assert late.base == 1
    assert newest > 10
    (made,) = [
        e
        for e in run.of(VersionPublished)
        if "update/train-0001-b-1" in {t.ref for t in e.terms}
    ]
    assert "version/1" in {t.ref for t in made.terms}
    assert not run.of(AssignmentFailed)
    check_files(run)


def test_fedbuff_counts_stale_updates_less(tmp_path: Path) -> None:
    """K = 2, lr = 1: a and a make v1 (0.5 + 0.5) and v2; then a and b, of version 0.

    b's staleness is 2 and counts 1/2 * 3^-0.5, so v3 = 2 + 1/2 + 6/2 * 3^-0.5.
    """
    scripts = {
        "a": Script(drift=1.0, trains={"train-0006-a-1": 5000.0}),
        "b": Script(drift=6.0, train_s=500.0),
    }
    options = {"k": 2}
    run = Scenario(
        tmp_path, scripts, strategy="fedbuff", options=options, stop=Stop(rounds=3)
    )
    assert run.run().outcome == "done"
    np.testing.assert_allclose(run.model(3)["bias"], 2.5 + 3.0**0.5, rtol=1e-6)


def test_scaffold_brings_all_facilities_onto_one_course(tmp_path: Path) -> None:
    """Slopes of 1, 3 and -2: once corrected, all move by their mean, 2/3.

    Round 1: c_k = -d_k / L, c their mean, so the correction adds -L (c - c_k) to d_k,
    which makes it the mean of all.
    """
    run = scenario(tmp_path, "scaffold", rounds=3)
    assert run.run().outcome == "done"
    np.testing.assert_allclose(run.model(3)["bias"], 2.0, rtol=1e-5)
    told = retold(run)
    moved = {name: told.values[f"update/train-0003-{name}-1"] for name in "abc"}
    assert moved == pytest.approx(dict.fromkeys("abc", 2 / 3))
    staged = {(e.facility, e.state, e.version) for e in run.of(ModelStaged) if e.state}
    assert staged == {(n, f"correction-{n}", v) for n in "abc" for v in (1, 2)}


def test_scaffold_survives_a_crash_between_states_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are written before the version: what is left of a crash is made anew."""
    calm = scenario(tmp_path / "calm", "scaffold", rounds=3)
    calm.run()
    shaken = scenario(tmp_path / "shaken", "scaffold", rounds=3)
    publish = shaken.store._write

    def die(*args: Any) -> Any:
        monkeypatch.setattr(shaken.store, "_write", publish)
        raise OSError("the machine goes down")

    monkeypatch.setattr(shaken.store, "_write", die)
    with pytest.raises(OSError, match="goes down"):
        shaken.run()
    assert (shaken.store.root / "states" / "control" / "1").is_dir()
    assert shaken.store.versions() == [0]
    assert shaken.run().outcome == "done"
    for tensor, values in calm.model(3).items():
        np.testing.assert_array_equal(shaken.model(3)[tensor], values)
    control = "state/control/3"
    there = [
        {
            path.name: path.read_bytes()
            for path in one.store.state_dir(control).iterdir()
        }
        for one in (calm, shaken)
    ]
    assert there[0] == there[1]


def test_scaffold_without_plain_sgd_ends_with_a_reason(tmp_path: Path) -> None:
    run = scenario(tmp_path, "scaffold", a=replace(SCRIPTS["a"], rate=0.0))
    assert run.run().outcome == "failed"
    assert "plain SGD" in run.of(RunFinished)[-1].reason


@pytest.mark.parametrize("name", ["fedavg", "fedasync", "mifa"])
def test_a_term_that_is_gone_ends_the_run_with_a_reason(
    tmp_path: Path, name: str
) -> None:
    """No later try would bring it back, so the run is over, and says why."""
    run = scenario(tmp_path, name)
    run.run(until=lambda event: isinstance(event, UpdateArrived))
    (arrived,) = run.of(UpdateArrived)
    folder = run.store.update_dir(arrived.assignment)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert run.run().outcome == "failed"
    (failure,) = run.of(AggregateFailed)
    assert arrived.assignment in failure.reason
    assert run.of(RunFinished)[-1].reason == failure.reason
    assert run.run().outcome == "failed"  # and stays so


@pytest.mark.parametrize("name", ["fedcompass", "fedqueue"])
def test_steps_follow_speeds_and_queues(tmp_path: Path, name: str) -> None:
    """The fast facility gets more steps than the slow one, which queues as well."""
    scripts = {
        "fast": Script(step_drift=0.01, drift=0.0, step_s=1.0),
        "slow": Script(step_drift=0.01, drift=0.0, step_s=10.0, queue_s=100.0),
    }
    run = Scenario(
        tmp_path,
        scripts,
        strategy=name,
        options={**SHORT[name], "min_steps": 2},
        stop=Stop(rounds=12),
    )
    assert run.run().outcome == "done"
    steps = {
        facility: max(e.steps for e in run.of(UpdateArrived) if e.facility == facility)
        for facility in scripts
    }
    assert steps["fast"] > 2 * steps["slow"]
    assert {e.base for e in run.of(JobStarted) if e.base > 0}
    check_files(run)
