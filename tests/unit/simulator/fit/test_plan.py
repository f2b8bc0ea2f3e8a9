"""A run's plan as a federation that can be changed, simulated and written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.simulator.fit.plan import changed, checked, limited, planned, study_text
from hansa.spec import load_federation
from hansa.spec.federation import FederationSpec
from hansa.spec.load import federation_from_text
from hansa.spec.problems import Document
from hansa.spec.simulation import FacilitySimulation

NOTHING = {"training": {"type": "none"}}


def fit(median: float) -> FacilitySimulation:
    return FacilitySimulation.model_validate(
        {"queue": {"type": "lognormal", "median": median}, "notice": 7.0}
    )


@pytest.fixture
def doc(plan: FederationSpec) -> Document:
    return planned(plan, NOTHING, {"a": fit(60.0), "b": fit(90.0)}, name="the fit")


def made(doc: Document, *overrides: str) -> FederationSpec:
    return checked(changed(doc, overrides))


def queue(spec: FederationSpec, name: str) -> Any:
    simulation = spec.facilities[name].simulation
    assert simulation is not None
    return simulation.queue


def test_defaults_mean_every_facility(doc: Document) -> None:
    spec = made(doc, "defaults.linger=10m", "facilities.b.linger=1m")
    assert [one.linger for one in spec.facilities.values()] == [600.0, 60.0]
    spec = made(doc, "defaults.simulation.queue.median=5", "~defaults.job.nodes")
    assert [queue(spec, name).median for name in "ab"] == [5.0, 5.0]
    assert [one.job.nodes for one in spec.facilities.values()] == [1, 1]


def test_another_strategy_leaves_the_options_of_the_old_one_behind(
    doc: Document,
) -> None:
    assert made(doc).strategy.name == "fedavg"
    spec = made(doc, "strategy.name=fedbuff", "strategy.k=2")
    assert (spec.strategy.name, spec.strategy.options["k"]) == ("fedbuff", 2)
    assert "quorum" not in spec.strategy.options
    same = made(doc, "strategy.name=fedavg", "strategy.quorum=2")
    assert same.strategy.options["quorum"] == 2


def test_mistakes_are_told_as_in_a_file(doc: Document) -> None:
    with pytest.raises(SpecError, match=r"facilities\.a\.lingr=10m"):
        made(doc, "defaults.lingr=10m")


def test_what_the_plan_says_of_its_simulation_is_kept(plan: FederationSpec) -> None:
    own = plan.model_dump(mode="json")
    own["simulation"] = {"start_hour": 20.0, "aggregate": 3.0}
    own["facilities"]["a"]["simulation"] = {"preset": "x", "most_nodes": 9}
    doc = planned(
        FederationSpec.model_construct(**FederationSpec.model_validate(own).__dict__),
        {**NOTHING, "aggregate": 4.0},
        {"a": fit(60.0)},
        name="the fit",
    )
    assert doc.data["simulation"]["start_hour"] == 20.0
    assert doc.data["simulation"]["aggregate"] == 4.0
    found = doc.data["facilities"]["a"]["simulation"]
    assert (found["most_nodes"], found["preset"], found["notice"]) == (9, None, 7.0)


def test_a_target_is_replaced_where_nothing_is_trained(doc: Document) -> None:
    target = "stop={target: {below: 0.5}, wall_clock: 1h}"
    stop, without = limited(changed(doc, [target]), 4)
    assert without
    spec = checked(stop)
    assert spec.stop.target is None
    assert (spec.stop.rounds, spec.stop.wall_clock) == (4, 3600.0)


def test_a_target_stays_where_something_is_trained(doc: Document) -> None:
    changes = ["stop={target: {below: 0.5}}", "simulation.training={type: surrogate}"]
    stop, without = limited(changed(doc, changes), 4)
    assert not without
    assert checked(stop).stop.target is not None


def test_without_a_target_the_plan_says_when_it_ends(doc: Document) -> None:
    stop, without = limited(changed(doc, ["stop.rounds=9"]), 4)
    assert not without
    assert checked(stop).stop.rounds == 9


def test_a_written_study_loads_as_the_same_federation(
    doc: Document, tmp_path: Path
) -> None:
    spec = made(doc, "facilities.b.linger=5m")
    path = tmp_path / "study.yaml"
    path.write_text(study_text(spec, ["Fitted.", "Two lines\nof one note."]))
    assert path.read_text().startswith("# Fitted.\n# Two lines\n# of one note.\nname:")
    assert federation_from_text(path.read_text()) == spec
    # What both share can be changed for both.
    assert "work:" in path.read_text().partition("facilities:")[0]
    both = load_federation(path, ["defaults.work.steps=99"])
    assert [one.work.steps for one in both.facilities.values()] == [99, 99]
