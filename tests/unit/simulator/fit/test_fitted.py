"""From a run's folder to a federation, and back to the same times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa.coordinator.folder import RunFolder
from hansa.coordinator.throughput import Study
from hansa.core import events as ev
from hansa.core.errors import SimulationError
from hansa.planner.record import Measurement
from hansa.report import summarise
from hansa.simulator.fit import Fit, fitted
from hansa.simulator.fit.check import Check, check, check_table, compared
from hansa.simulator.fit.describe import fit_table
from hansa.simulator.simulate import simulate
from hansa.spec.federation import FederationSpec, lock_text
from hansa.spec.load import federation_from_text
from hansa.spec.simulation import FacilitySimulation

Keep = Callable[..., RunFolder]


def part(spec: FederationSpec, name: str) -> FacilitySimulation:
    found = spec.facilities[name].simulation
    assert found is not None
    return found


def two_rounds(diary: Any) -> Any:
    """Both facilities train twice, `b` with the longer queue; 3 s more at the end."""
    begin = 0.0
    for number in (1, 2):
        orders = [f"train-{number:04d}-{name}-1" for name in "ab"]
        diary.order(begin, orders[0], "a", wait=50.0 * number)
        begin = diary.order(begin, orders[1], "b", wait=100.0 * number) + 0.5
        diary.add(diary.version(begin, number, *orders))
    diary.finished(begin + 3.0)
    return diary


def said(fit: Fit, what: str) -> bool:
    return any(what in note for note in fit.notes)


def test_what_a_run_shows(diary: Any, keep: Keep) -> None:
    spec, fit = fitted(keep(two_rounds(diary).sorted()))
    a = part(spec, "a")
    assert a.queue.model_dump()["waits"] == (50.0, 100.0)
    assert (a.speed.seconds_per_step, a.speed.reference_nodes) == (3.0, 2)
    assert (a.speed.startup, a.speed.save, a.speed.evaluate_local) == (20.0, 6.0, 4.0)
    assert (a.notice, a.link.latency, a.link.bandwidth) == (4.0, 0.0, 1000)
    assert spec.simulation is not None
    assert spec.simulation.aggregate == 0.5
    assert spec.simulation.training.model_dump() == {
        "type": "none", "bytes": 4000, "update_bytes": 1000,
    }  # fmt: skip
    assert spec.stop.rounds == 2
    assert said(fit, "Few measurements: a (2 waits, 2 updates) and b")
    assert [row[0] for row in fit_table(fit).rows] == ["a", "b"]
    assert fit.to_json()["facilities"]["a"]["updates"] == 2


def test_the_same_run_again(diary: Any, keep: Keep) -> None:
    """By hand: staging 4 s, queue, job 60 s, notice 4 s, update 1 s, version 0.5 s.

    The slower `b` waits 100 s, then 200 s: 169.5 s and 269.5 s a round.
    """
    made = check(keep(two_rounds(diary).sorted()))
    found = {(row.where, row.what): row for row in made.rows}
    assert found["run", "version 1"].simulated == pytest.approx(169.5)
    assert found["run", "version 1"].real == pytest.approx(169.5)
    assert found["run", "version 2"].simulated == pytest.approx(439.0)
    assert found["b", "queue wait"].simulated == pytest.approx(300.0)
    assert found["b", "training"].simulated == pytest.approx(60.0)
    assert found["b", "transfer"].simulated == pytest.approx(10.0)
    assert found["b", "node-hours"].simulated == pytest.approx(2 * 2 * 60 / 3600)


def test_other_nodes_and_walltimes_are_pointed_out(diary: Any, keep: Keep) -> None:
    folder = keep(two_rounds(diary).sorted())
    spec, fit = fitted(
        folder, ["defaults.job.nodes=4", "facilities.a.job.time=30m", "stop.rounds=5"]
    )
    assert spec.stop.rounds == 5
    assert part(spec, "a").speed.reference_nodes == 2
    assert said(fit, "b: 4 nodes instead of 2: speed is taken to grow with nodes^0.9")
    assert said(fit, "a: 0:30:00 of walltime instead of 1:00:00")
    twice = simulate(spec).wall_clock_s / 5
    plain, _ = fitted(folder, ["stop.rounds=5"])
    # 30 s of steps become 30 / 2^0.9 = 16.1 s.
    assert simulate(plain).wall_clock_s / 5 - twice == pytest.approx(13.9, abs=0.5)


def test_how_speed_grows_with_nodes_is_taken_from_a_measurement(
    diary: Any, keep: Keep
) -> None:
    folder = keep(two_rounds(diary).sorted())
    study = Study(spec=folder.spec(), facility="b", runs=folder.path.parent)
    study.keep(
        [
            Measurement(nodes=nodes, ranks=nodes, batch=8, steps=20, step_s=step_s)
            for nodes, step_s in ((1, 8.0), (4, 4.0))  # twice as fast on four nodes
        ],
        "strong",
    )
    spec, fit = fitted(folder, ["defaults.job.nodes=4"])
    assert part(spec, "b").speed.nodes_exponent == 0.5
    assert part(spec, "a").speed.nodes_exponent == 0.9
    assert said(fit, "b: 4 nodes instead of 2: speed is taken to grow with nodes^0.5")


def test_a_facility_that_never_started_a_job(diary: Any, keep: Keep) -> None:
    over = diary.order(0.0, "train-0001-a-1", "a", wait=30.0)
    diary.queued(6.0, "train-0001-b-1", "b")
    diary.add(diary.version(over + 1, 1, "train-0001-a-1"))
    spec, fit = fitted(keep(diary.sorted()))
    waited = over + 1 - 6.0
    assert part(spec, "b").queue.model_dump()["waits"] == (pytest.approx(waited),)
    assert part(spec, "b").speed == part(spec, "a").speed
    assert said(fit, "b: no job of it ever started (one waited 1m34).")
    assert said(fit, "b: queue wait, speed, start-up,")
    assert said(fit, "r did not come to its end: this is what its first 1m40 show.")


def test_an_unfinished_run_is_compared_up_to_its_newest_version(
    diary: Any, keep: Keep
) -> None:
    two_rounds(diary)
    events = [one for one in diary.sorted() if not isinstance(one, ev.RunFinished)]
    events += [ev.TimerFired(at=events[-1].at + 5000.0, timer="late")]
    made = check(keep(events))
    assert made.wall_clock.what == "time until the newest version"
    assert made.wall_clock.real == pytest.approx(439.0)
    assert made.passed


def test_a_run_whose_jobs_all_wait_is_refused(diary: Any, keep: Keep) -> None:
    diary.queued(5.0, "train-0001-a-1", "a")
    with pytest.raises(SimulationError, match="No job of r ever started"):
        fitted(keep(diary.sorted()))


def test_a_run_without_an_update_is_refused(diary: Any, keep: Keep) -> None:
    diary.queued(5.0, "train-0001-a-1", "a")
    diary.ended(90.0, "train-0001-a-1", "a", 20.0, 60.0, state="FAILED")
    with pytest.raises(SimulationError, match="No update of r ever came"):
        fitted(keep(diary.sorted()))


def test_a_run_without_a_version_can_not_be_checked(diary: Any, keep: Keep) -> None:
    diary.order(0.0, "train-0001-a-1", "a")
    with pytest.raises(SimulationError, match="no version yet"):
        check(keep(diary.sorted()))


def test_a_target_on_the_loss(diary: Any, keep: Keep, plan: FederationSpec) -> None:
    text = lock_text(plan).replace("target: null", "target: {below: 0.1}")
    text = text.replace("rounds: 2", "rounds: null")
    spec, fit = fitted(keep(two_rounds(diary).sorted(), text))
    assert (spec.stop.target, spec.stop.rounds) == (None, 2)
    assert said(fit, "ends after 2 versions, as many as the run made")


def test_a_wrong_wall_clock_does_not_pass(diary: Any) -> None:
    real = summarise(two_rounds(diary).sorted())
    slower = [one for one in diary.sorted() if not isinstance(one, ev.RunFinished)]
    slower.append(
        ev.RunFinished(at=real.wall_clock_s * 1.11, outcome="done", reason="")
    )
    made: Check = compared(real, summarise(slower))
    assert made.wall_clock.error == pytest.approx(0.11)
    assert not made.passed
    assert made.verdict().endswith("an error of +11.0%; more than 10%.")
    assert compared(real, real).passed
    assert check_table(made).rows[0][-1] == "+11.0%"


TRUTH = """\
name: known
seed: 5
model: {trainer: softmax, source: zeros}
task: digits
strategy: {name: fedavg}
stop: {rounds: 6}
evaluation: {on: a}
defaults:
  gateway: {type: local, site: s.yaml}
  mover: posix
  job: {nodes: 2, time: 2h}
  work: {steps: 50, batch: 8, lr: 0.1}
simulation:
  training: {type: none, bytes: 80MB, update_bytes: 20MB}
  evaluation: facility
  aggregate: 2
facilities:
  a:
    linger: 20m
    simulation:
      queue: {type: replay, waits: [900]}
      speed: {seconds_per_step: 4, reference_nodes: 2, startup: 40, handover: 3,
              save: 5, evaluate: 30, evaluate_local: 30}
      link: {latency: 2, bandwidth: 10MB}
      notice: 12
  b:
    simulation:
      queue: {type: replay, waits: [300, 500, 100, 700, 200, 400]}
      speed: {seconds_per_step: 2, reference_nodes: 2, startup: 60, save: 8}
      link: {latency: 0.5, bandwidth: 20MB}
      notice: 7
"""


def test_what_was_simulated_is_found_again(tmp_path: Path) -> None:
    """A run whose truth is known: its journal gives the numbers that it was made of."""
    truth = federation_from_text(TRUTH)
    outcome = simulate(truth, folder=tmp_path / "known")
    folder = RunFolder(tmp_path / "known")
    books = summarise(record.event for record in folder.records())
    assert books.node_hours == pytest.approx(outcome.node_hours)
    spec, _ = fitted(folder)
    for name in "ab":
        found, known = part(spec, name), part(truth, name)
        seen = {"seconds_per_step", "startup", "save", "evaluate_local"}
        seen |= {"handover", "evaluate"} if name == "a" else set()
        assert found.speed.model_dump(include=seen) == pytest.approx(
            known.speed.model_dump(include=seen), rel=1e-4
        )
        assert found.queue == known.queue
        assert found.notice == pytest.approx(known.notice)
        assert found.link.latency == pytest.approx(known.link.latency, rel=1e-4)
        assert found.link.bandwidth == pytest.approx(known.link.bandwidth, rel=1e-4)
    made = check(folder)
    assert all(abs(row.error or 0.0) < 1e-4 for row in made.rows)


@pytest.mark.parametrize("strategy", ["fedasync", "fedbuff", "scaffold", "fedvarp"])
def test_what_another_strategy_would_have_taken(
    diary: Any, keep: Keep, strategy: str
) -> None:
    spec, _ = fitted(keep(two_rounds(diary).sorted()), [f"strategy.name={strategy}"])
    outcome = simulate(spec)
    assert (outcome.strategy, outcome.outcome, outcome.versions) == (
        strategy, "done", 2,
    )  # fmt: skip
