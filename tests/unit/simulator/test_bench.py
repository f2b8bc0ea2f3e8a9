"""`hansa bench simulate` simulates what it says; how fast it is, is not asked here."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.core.errors import SimulationError
from hansa.simulator import bench
from hansa.simulator.bench import bench_simulate


@pytest.mark.parametrize(
    ("strategy", "linger"), [("fedavg", True), ("fedavg", False), ("fedbuff", True)]
)
def test_rounds_and_events_are_counted(strategy: str, linger: bool) -> None:
    told: list[tuple[str, int, int]] = []
    found = bench_simulate(
        strategy,
        rounds=40,
        linger=linger,
        repeats=2,
        tell=lambda *step: told.append(step),
    )
    assert (found.strategy, found.facilities, found.linger) == (strategy, 4, linger)
    assert found.rounds == 40
    # Staged, queued, started, arrived; and the end of a job, if each round has one.
    assert found.events > found.rounds * (4 if linger else 5)
    assert len(found.seconds) == 2
    low, high = sorted(found.seconds)
    assert low <= found.seconds_median <= high
    assert found.facility_rounds_per_second == pytest.approx(40 / found.seconds_median)
    assert found.events_per_second == pytest.approx(found.events / found.seconds_median)
    assert [done for _, done, _ in told] == [0, 1, 2, 3]
    assert all(of == 3 for _, _, of in told)


def test_facilities_differ_and_every_job_has_time_for_its_rounds() -> None:
    spec = bench._federation("fedavg", 10, True)
    paces = [one.simulation.speed.seconds_per_step for one in spec.facilities.values()]  # type: ignore[union-attr]
    assert all(slower > faster for faster, slower in pairwise(paces))
    for one, pace in zip(spec.facilities.values(), paces, strict=True):
        assert one.job.time > 10 * one.work.steps * pace


def test_a_simulation_that_fails_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = bench._federation("fedavg", 10, False)
    stop = spec.stop.model_copy(update={"rounds": None, "updates": None})
    spec = spec.model_copy(update={"stop": stop})
    one = spec.facilities["facility-1"]
    job = one.job.model_copy(update={"time": 20.0})  # no step fits in
    facilities = {name: one.model_copy(update={"job": job}) for name in spec.facilities}
    spec = spec.model_copy(update={"facilities": facilities})
    monkeypatch.setattr(bench, "_federation", lambda *_: spec)
    with pytest.raises(SimulationError, match="ended as failed"):
        bench_simulate(repeats=1)


def test_the_command_prints_words_or_json() -> None:
    words = ["bench", "simulate", "--rounds", "40", "--repeats", "1"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)["data"]
    assert data["facility_rounds_per_second"] == pytest.approx(
        data["rounds"] / data["seconds_median"]
    )
    assert {"rounds", "seconds", "events_per_second", "strategy"} <= set(data)
    text = CliRunner().invoke(app, [*words, "--strategy", "fedbuff"]).stdout
    assert "40 rounds of 4 facilities, fedbuff" in text
