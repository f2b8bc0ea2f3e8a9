"""What a simulation may be told, and how wrong things are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import SpecError
from hansa.spec import federation_from_text, load_federation, lock_text, plan_hash
from hansa.spec.presets import load_preset, preset_names, preset_of, simulation_of
from hansa.spec.profiles import profile_names
from hansa.spec.simulation import (
    BackfillQueue,
    FacilitySimulation,
    LognormalQueue,
    NoTraining,
    ReplayQueue,
    SurrogateTraining,
)

pytestmark = pytest.mark.usefixtures("folder")

RIGA = "job: {queue: fast}"
"""What stands in line 16 of fed.yaml, and may give way."""


def refusal() -> str:
    with pytest.raises(SpecError) as caught:
        load_federation("fed.yaml")
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        (
            "queue: {type: lognormal, median: -5}",
            "queue.median is -5; expected a number greater than or equal to 0",
        ),
        (
            "queue: {type: lognormal, median: .nan}",
            "queue.median is NaN; expected a finite number",
        ),
        (
            "queue: {type: lognormal, median: 5m, sigma: 9}",
            "queue.sigma is 9; expected a number less than or equal to 4",
        ),
        (
            "queue: {type: lognormal}",
            "queue needs the key 'median'",
        ),
        ("queue: {median: 5m}", "queue needs the key 'type'"),
        (
            "queue: {type: lognormall, median: 5m}",
            "queue.type is \"lognormall\"; did you mean 'lognormal'?",
        ),
        (
            "queue: {type: xyz}",
            'queue.type is "xyz"; there are lognormal, backfill, replay',
        ),
        ("queue: 5m", 'queue is "5m"; expected keys with values'),
        (
            "queue: {type: replay, waits: [60, -1]}",
            "queue.waits.1 is -1; expected a number greater than or equal to 0",
        ),
        (
            "queue: {type: replay, waits: []}",
            "queue: a replayed queue needs either `waits` or `file`",
        ),
        (
            "queue: {type: replay, waits: 60}",
            "queue.waits: expected a list",
        ),
        (
            "queue: {type: replay, waits: [60], order: time}",
            "queue: `order: time` needs a `file` with `submitted_s`",
        ),
        (
            "queue: {type: backfill, nodes: 0}",
            "queue.nodes is 0; expected a number greater than or equal to 1",
        ),
        (
            "queue: {type: backfill, nodes: 8, synthetic: {load: 2}}",
            "queue.synthetic.load is 2; expected a number less than 1.5",
        ),
        (
            "link: {bandwidth: 0}",
            "link.bandwidth is 0; expected a number greater than 0",
        ),
        (
            "failures: {outages: [{at: 1h, lasts: 2h, every: 1h}]}",
            "failures.outages.0: a window that comes again must end before that",
        ),
        (
            "failures: {maintenance: [{at: -1, lasts: 2h}]}",
            "failures.maintenance.0.at is -1; "
            "expected a number greater than or equal to 0",
        ),
        ("classes: []", "classes: expected at least one entry"),
        (
            "longest: 0",
            "longest is 0; expected a number greater than 0",
        ),
    ],
)
def test_a_wrong_facility_is_told_with_its_line(
    edit: Any, simulation: str, message: str
) -> None:
    edit(RIGA, f"simulation: {{{simulation}}}")
    assert refusal() == f"fed.yaml:16: facilities.riga.simulation.{message}"


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        (
            "queue: {type: lognormal, median: 5m, sgma: 1}",
            "unknown key 'sgma' in facilities.riga.simulation.queue; "
            "did you mean 'sigma'?",
        ),
        (
            "queue: {type: replay, waits: [1], sigma: 1}",
            "unknown key 'sigma' in facilities.riga.simulation.queue; "
            "known keys: type, waits, file, order",
        ),
        (
            "failures: {outages: [{at: 1h, last: 2h}]}",
            "unknown key 'last' in facilities.riga.simulation.failures.outages.0; "
            "did you mean 'lasts'?",
        ),
    ],
)
def test_the_nearest_key_is_named_inside_unions_and_lists(
    edit: Any, simulation: str, message: str
) -> None:
    edit(RIGA, f"simulation: {{{simulation}}}")
    assert f"fed.yaml:16: {message}" in refusal().splitlines()


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        (
            "training: {type: surrogate, alpha: 0}",
            "training.alpha: expected a number greater than 0, or iid",
        ),
        (
            "training: {type: surrogate, alpha: IID}",
            "training.alpha: expected a number greater than 0, or iid",
        ),
        (
            "training: {type: surrogate, condition: 0.5}",
            "training.condition is 0.5; expected a number greater than or equal to 1",
        ),
        (
            "training: {type: surrogate, classes: 1}",
            "training.classes is 1; expected a number greater than or equal to 2",
        ),
        (
            "training: surogate",
            "training.type is \"surogate\"; did you mean 'surrogate'?",
        ),
        (
            "start_hour: 24",
            "start_hour is 24; expected a number less than 24",
        ),
        (
            "scenarios: {slow: [x]}",
            "scenarios.slow.0: 'x' is no override. Write key=value to set, +key=value "
            "to add, ~key to remove; for example stop.rounds=3.",
        ),
        (
            "compare: {grid: {strategy.size: []}}",
            "compare.grid: there is nothing to choose from for 'strategy.size'",
        ),
        (
            "compare: {strategies: [averag]}",
            "compare.strategies names no strategy: 'averag'; did you mean 'average'?",
        ),
        (
            "compare: {own_grid: {bufer: {strategy.size: [1]}}}",
            "compare.own_grid names no strategy: 'bufer'; did you mean 'buffer'?",
        ),
        (
            "scenarios: {slow: [seed=2]}, compare: {scenarios: [slwo]}",
            "compare.scenarios names no scenario: 'slwo'; did you mean 'slow'?",
        ),
        (
            "compare: {modes: [latte]}",
            "compare.modes.0 is \"latte\"; expected one of 'published' or 'late'",
        ),
    ],
)
def test_a_wrong_simulation_is_told_with_its_line(
    edit: Any, simulation: str, message: str
) -> None:
    edit("stop: {rounds: 3}", f"stop: {{rounds: 3}}\nsimulation: {{{simulation}}}")
    assert refusal() == f"fed.yaml:6: simulation.{message}"


def test_classes_that_the_problem_has_not_are_refused(edit: Any) -> None:
    edit(RIGA, "simulation: {classes: [0, 10]}")
    assert refusal() == (
        "fed.yaml:16: facilities.riga.simulation.classes has 10; the classes are 0 to 9"
    )
    spec = load_federation("fed.yaml", ["+simulation.training=none"])
    assert isinstance(spec.simulation.training, NoTraining)  # type: ignore[union-attr]


def test_defaults_lie_beneath_and_another_type_replaces(edit: Any) -> None:
    edit(
        "defaults:\n",
        "defaults:\n  simulation:\n    queue: {type: lognormal, median: 1h, sigma: 2}\n"
        "    link: {latency: 3}\n",
    )
    edit(RIGA, "simulation: {queue: {type: replay, waits: [1m, 2m]}}")
    edit("data: part-0", "simulation: {queue: {median: 2h}}")
    bergen, riga = load_federation("fed.yaml").facilities.values()
    assert bergen.simulation is not None
    assert riga.simulation is not None
    assert bergen.simulation.queue == LognormalQueue(
        type="lognormal", median=7200.0, sigma=2.0
    )
    assert riga.simulation.queue == ReplayQueue(type="replay", waits=(60.0, 120.0))
    assert riga.simulation.link.latency == bergen.simulation.link.latency == 3.0


@pytest.mark.parametrize(
    ("queue", "key"),
    [
        ("{type: replay, file: waits/a.csv}", "file"),
        ("{type: backfill, nodes: 8, workload: waits/a.csv}", "workload"),
    ],
)
def test_files_are_taken_from_the_folder_of_the_file(
    folder: Path, edit: Any, monkeypatch: pytest.MonkeyPatch, queue: str, key: str
) -> None:
    edit(RIGA, f"simulation: {{queue: {queue}}}")
    monkeypatch.chdir("/")
    spec = load_federation(folder / "fed.yaml")
    found = spec.facilities["riga"].simulation
    assert found is not None
    assert getattr(found.queue, key) == folder / "waits" / "a.csv"
    assert federation_from_text(lock_text(spec)) == spec


def test_short_forms_and_single_values() -> None:
    spec = load_federation(
        "fed.yaml",
        ["+simulation.scenarios.slow=seed=2", "+simulation.compare.modes=late"],
    )
    assert spec.simulation is not None
    assert spec.simulation.scenarios == {"slow": ("seed=2",)}
    assert spec.simulation.compare.modes == ("late",)
    assert isinstance(spec.simulation.training, SurrogateTraining)


# The hash of a plan, and the budget of updates.


def test_a_plan_that_simulates_nothing_has_the_hash_that_it_always_had(
    folder: Path,
) -> None:
    # What the version before there were simulations gave for this text.
    spec = federation_from_text((folder / "fed.yaml").read_text())
    assert (
        plan_hash(spec)
        == "3f33f52acb615bc9d41bd7eea046e19a4b8db864d344477c12d9425339e5da06"
    )


def test_what_is_simulated_is_part_of_the_plan(edit: Any) -> None:
    before = plan_hash(load_federation("fed.yaml"))
    edit(RIGA, "simulation: {samples: 5}")
    spec = load_federation("fed.yaml")
    assert plan_hash(spec) != before
    again = federation_from_text(lock_text(spec))
    assert again == spec
    assert plan_hash(again) == plan_hash(spec)


def test_updates_can_end_a_run() -> None:
    spec = load_federation("fed.yaml", ["~stop.rounds", "+stop.updates=40"])
    assert (spec.stop.rounds, spec.stop.updates) == (None, 40)


# Presets.


@pytest.mark.parametrize("name", preset_names())
def test_every_fact_of_a_preset_is_cited_or_synthetic(name: str) -> None:
    preset = load_preset(name)
    for fact in preset.facts:
        assert fact.why.endswith(".")
        assert fact.synthetic or fact.source
    simulation = FacilitySimulation.model_validate(preset.keys())
    assert simulation.queue.type == "lognormal"


def test_a_fact_without_a_source_is_refused() -> None:
    kind = type(load_preset("quiet"))
    fact = {"keys": {"samples": 5}, "why": "So."}
    with pytest.raises(ValueError, match="needs a source, or `synthetic: true`"):
        kind.model_validate({"title": "x", "facts": [fact]})
    with pytest.raises(ValueError, match="'page' is not among the documents"):
        kind.model_validate({"title": "x", "facts": [{**fact, "source": "page"}]})
    wrong = {**fact, "synthetic": True, "keys": {"smples": 5}}
    with pytest.raises(ValueError, match="smples"):
        kind.model_validate({"title": "x", "facts": [wrong]})


def test_the_paper_s_median_for_64_nodes_of_polaris() -> None:
    found = FacilitySimulation.model_validate(load_preset("polaris").keys())
    assert isinstance(found.queue, LognormalQueue)
    assert (found.queue.median, found.queue.reference_nodes) == (360_000.0, 64)
    at_two = found.queue.median * (2 / 64) ** found.queue.nodes_exponent
    assert 200 < at_two < 300  # 4 minutes, as its `why` says


def test_a_preset_lies_beneath_defaults_and_facility(edit: Any) -> None:
    edit("defaults:\n", "defaults:\n  simulation: {link: {bandwidth: 1GB}}\n")
    edit(RIGA, "simulation: {preset: polaris, queue: {sigma: 2}}")
    bergen, riga = load_federation("fed.yaml").facilities.values()
    found = riga.simulation
    assert found is not None
    assert isinstance(found.queue, LognormalQueue)
    assert (found.preset, found.queue.sigma, found.queue.median) == ("polaris", 2, 36e4)
    assert (found.link.bandwidth, found.link.latency) == (10**9, 5)
    assert bergen.simulation is not None
    assert bergen.simulation.preset is None
    spec = load_federation("fed.yaml")
    assert federation_from_text(lock_text(spec)) == spec


def test_another_queue_replaces_that_of_the_preset(edit: Any) -> None:
    edit(RIGA, "simulation: {preset: aurora, queue: {type: backfill, nodes: 8}}")
    found = load_federation("fed.yaml").facilities["riga"].simulation
    assert found is not None
    assert found.queue == BackfillQueue(type="backfill", nodes=8)
    assert found.longest == 168 * 3600


def test_an_unknown_preset_is_told_with_its_line(edit: Any) -> None:
    edit(RIGA, "simulation: {preset: polari}")
    assert refusal() == (
        "fed.yaml:16: There is no preset 'polari'. Did you mean 'polaris'? "
        f"Known: {', '.join(preset_names())}."
    )


def test_a_profile_brings_its_machine_s_preset_where_something_is_simulated(
    edit: Any,
) -> None:
    edit(RIGA, "profile: olcf/frontier\n    simulation: {samples: 7}")
    found = load_federation("fed.yaml").facilities["riga"].simulation
    assert found is not None
    assert (found.preset, found.samples, found.longest) == ("frontier", 7, 7200)
    none = ["facilities.riga.simulation.preset="]
    found = load_federation("fed.yaml", none).facilities["riga"].simulation
    assert found is not None
    assert (found.preset, found.longest) == (None, None)


def test_a_profile_alone_changes_no_plan(edit: Any) -> None:
    edit(RIGA, "profile: olcf/frontier")
    riga = load_federation("fed.yaml").facilities["riga"]
    assert riga.simulation is None
    assert simulation_of(riga.simulation, riga.profile).preset == "frontier"
    assert simulation_of(None, None) == FacilitySimulation.model_validate({})
    told = FacilitySimulation.model_validate({"samples": 3})
    assert simulation_of(told, riga.profile) is told


def test_presets_go_with_profiles_that_there_are() -> None:
    found = {name: preset_of(name) for name in profile_names()}
    assert {name for name in found.values() if name} <= set(preset_names())
    assert found["alcf/polaris"] == "polaris"
    assert found["local"] is None
    assert preset_of(7) is None


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=5))
def test_waits_come_back_from_the_lock_as_they_were(waits: list[float]) -> None:
    queue = ReplayQueue.model_validate({"type": "replay", "waits": waits})
    assert queue.waits == tuple(waits)
    assert ReplayQueue.model_validate(queue.model_dump(mode="json")) == queue
