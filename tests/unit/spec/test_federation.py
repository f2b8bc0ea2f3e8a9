from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hansa.core.errors import SpecError
from hansa.site import order
from hansa.spec import (
    FederationSpec,
    federation_from_text,
    load_federation,
    lock_text,
    plan_hash,
)

pytestmark = pytest.mark.usefixtures("folder")


def wrong(*overrides: str) -> list[str]:
    """Return the lines of the error that fed.yaml gives."""
    with pytest.raises(SpecError) as error:
        load_federation("fed.yaml", overrides)
    assert error.value.hint
    return error.value.message.splitlines()


# What a good file becomes


def test_plugin_defaults_are_merged() -> None:
    spec = load_federation("fed.yaml")
    assert spec.strategy.name == "average"
    assert spec.strategy.options == {
        "weights": "samples",
        "quorum": 1,
        "deadline": None,
    }
    assert spec.model.options == {"features": 64}
    assert spec.task.options == {"parts": 2, "seed": 0}
    assert spec.facilities["riga"].gateway.options == {"endpoint": "e-1", "tries": 3}


def test_defaults_lie_beneath_each_facility() -> None:
    bergen, riga = load_federation("fed.yaml").facilities.values()
    assert bergen.work.steps == 20
    assert bergen.work.options == {"batch": 32, "lr": 0.0001}
    assert riga.work.steps == 5
    assert riga.work.options == {"batch": 32, "lr": 0.0001}
    assert (bergen.job.queue, riga.job.queue) == ("slow", "fast")
    assert bergen.job.time == riga.job.time == 1800.0
    assert bergen.data == ("part-0",)
    assert riga.data == ("part-1", "part-0")


def test_own_defaults() -> None:
    spec = load_federation("fed.yaml", ["~defaults.job", "~facilities.riga.data"])
    assert spec.seed == 0
    assert spec.model.dtype == "float32"
    assert spec.update.dtype == "bfloat16"
    assert spec.keep.versions == 3
    assert spec.patience == 3600.0
    assert spec.retries == 3
    assert spec.evaluation.on == ("bergen", "riga")
    assert spec.evaluation.every == 1
    assert spec.evaluation.local is True
    assert spec.facilities["bergen"].job.nodes == 1
    assert spec.facilities["bergen"].job.time == 3600.0
    assert spec.facilities["riga"].data is None


def test_a_gateway_of_another_type_replaces_that_of_the_defaults() -> None:
    site = "{type: here, site: s.yaml}"
    spec = load_federation(
        "fed.yaml", [f"defaults.gateway={site}", "~facilities.bergen.gateway"]
    )
    assert spec.facilities["bergen"].gateway.type == "here"
    assert spec.facilities["riga"].gateway.options == {"endpoint": "e-1", "tries": 3}


def test_a_facility_may_be_all_defaults(edit: Any) -> None:
    edit("defaults:\n", "defaults:\n  gateway: {type: here, site: s.yaml}\n")
    spec = load_federation("fed.yaml", ["+facilities.danzig={}", "+facilities.kiel="])
    for name in ("danzig", "kiel"):
        assert spec.facilities[name].work.steps == 20
        assert spec.facilities[name].gateway.type == "here"


def test_paths_are_taken_from_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    spec = load_federation(folder / "fed.yaml")
    site = spec.facilities["bergen"].gateway.options["site"]
    assert site == str(folder / "sites" / "bergen.yaml")


def test_profile_job_lies_beneath_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_federation.__globals__["with_defaults"].__globals__
    job = {"queue": "profile", "account": "profile", "nodes": 4}

    class Known:
        def __init__(self, name: str) -> None:
            self.job = job

    monkeypatch.setitem(profile, "load_profile", Known)
    spec = load_federation("fed.yaml", ["facilities.bergen.profile=alcf/polaris"])
    bergen = spec.facilities["bergen"].job
    assert (bergen.queue, bergen.account, bergen.nodes) == ("slow", "profile", 4)
    assert spec.facilities["riga"].job.account is None


def test_evaluation_on_one_facility() -> None:
    assert load_federation("fed.yaml", ["evaluation.on=riga"]).evaluation.on == (
        "riga",
    )


def test_what_a_batch_facility_may_say() -> None:
    spec = load_federation(
        "fed.yaml",
        [
            "+facilities.riga.job.reservation=R1.day@x",
            "+facilities.riga.job.ranks_per_node=4",
            "+facilities.riga.linger=10m",
            "+facilities.riga.queue_ahead=1h",
            "+facilities.riga.when={deleted: resume, held: give_up}",
            "+start_together=30m",
        ],
    )
    riga, bergen = spec.facilities["riga"], spec.facilities["bergen"]
    assert (riga.job.reservation, riga.job.ranks_per_node) == ("R1.day@x", 4)
    assert (riga.linger, riga.queue_ahead, spec.start_together) == (600, 3600, 1800)
    assert (riga.when.deleted, riga.when.held) == ("resume", "give_up")
    assert riga.when.timeout == "resume"
    assert (bergen.linger, bergen.queue_ahead) == (0, 0)
    assert (bergen.when.deleted, bergen.when.held) == ("give_up", "wait")
    assert (bergen.job.reservation, bergen.site) == (None, None)


def test_a_copy_of_site_yaml_is_found_beside_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    spec = load_federation(
        folder / "fed.yaml", ["+facilities.riga.site=sites/riga.yaml"]
    )
    assert spec.facilities["riga"].site == folder / "sites" / "riga.yaml"
    again = federation_from_text(lock_text(spec))
    assert again == spec
    assert plan_hash(again) == plan_hash(spec)


@pytest.mark.parametrize("key", ["queue", "account", "reservation"])
@pytest.mark.parametrize(
    "word", ["-q", "two words", "a;b", "a\\n", "", "x" * 65, "$(id)", "ü"]
)
def test_a_word_that_the_facility_would_refuse_is_refused_with_its_line(
    edit: Any, key: str, word: str
) -> None:
    edit("job: {queue: fast}", f'job: {{{key}: "{word}"}}')
    with pytest.raises(SpecError) as caught:
        load_federation("fed.yaml")
    message = caught.value.message
    assert message.startswith(f"fed.yaml:16: facilities.riga.job.{key}: ")
    assert "can't name a queue, an account or a reservation" in message
    with pytest.raises(ValidationError):
        TypeAdapter(order.Word).validate_python(word.replace("\\n", "\n"))


# What is refused, and how


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "strategy:",
            "strateg:",
            "fed.yaml:4: unknown key 'strateg' in federation; did you mean 'strategy'?",
        ),
        (
            "{time: 30m,",
            "{tiem: 30m,",
            "fed.yaml:8: unknown key 'tiem' in defaults.job; did you mean 'time'?",
        ),
        (
            "job: {queue: fast}",
            "job: {quee: fast}",
            "fed.yaml:16: unknown key 'quee' in facilities.riga.job; "
            "did you mean 'queue'?",
        ),
        (
            "lr: 1e-4",
            "lrr: 1e-4",
            "fed.yaml:9: unknown key 'lrr' in defaults.work; did you mean 'lr'?",
        ),
        (
            "strategy: average",
            "strategy: {name: average, wights: equal}",
            "fed.yaml:4: unknown key 'wights' in strategy; did you mean 'weights'?",
        ),
        (
            "stop: {rounds: 3}",
            "stop: {xyz: 3}",
            "fed.yaml:5: unknown key 'xyz' in stop; known keys: "
            "rounds, updates, wall_clock, node_hours, target",
        ),
        (
            "rounds: 3",
            "rounds: three",
            'fed.yaml:5: stop.rounds is "three"; expected a whole number',
        ),
        (
            "rounds: 3",
            "rounds: '3'",
            'fed.yaml:5: stop.rounds is "3"; expected a whole number',
        ),
        (
            "rounds: 3",
            "rounds: 0",
            "fed.yaml:5: stop.rounds is 0; "
            "expected a number greater than or equal to 1",
        ),
        (
            "rounds: 3",
            "rounds: true",
            "fed.yaml:5: stop.rounds is true; expected a whole number",
        ),
        (
            "stop: {rounds: 3}",
            "stop: {}",
            "fed.yaml:5: stop: the run would never end; set rounds, updates, "
            "wall_clock, node_hours or target",
        ),
        (
            "{rounds: 3}",
            "{wall_clock: soon}",
            "fed.yaml:5: stop.wall_clock: 'soon' is no duration; write 90, '90m', "
            "'1h30m' or '1:30:00' (hours:minutes:seconds)",
        ),
        (
            "source: zeros",
            "source: zeros, dtype: int8",
            'fed.yaml:2: model.dtype is "int8"; '
            "expected one of 'float32', 'bfloat16' or 'float16'",
        ),
        ("source: zeros", "dtype: float32", "fed.yaml:2: model needs the key 'source'"),
        ("name: towns\n", "", "fed.yaml:1: federation needs the key 'name'"),
        (
            "data: part-0",
            "data: 3",
            "fed.yaml:13: facilities.bergen.data is 3; "
            "expected a text or a list of texts",
        ),
        (
            "data: part-0",
            "data: [1]",
            "fed.yaml:13: facilities.bergen.data.0 is 1; "
            "expected text (in quotes if it looks like a number)",
        ),
        (
            "strategy: average",
            "strategy: averag",
            "fed.yaml:4: There is no strategy 'averag'. Did you mean 'average'?",
        ),
        (
            "trainer: linear",
            "trainer: liner",
            "fed.yaml:2: There is no trainer 'liner'. Did you mean 'linear'?",
        ),
        (
            "job: {queue: fast}",
            "when: {held: resume}",
            'fed.yaml:16: facilities.riga.when.held is "resume"; '
            "expected one of 'wait' or 'give_up'",
        ),
        (
            "job: {queue: fast}",
            "when: {deleted: wait}",
            'fed.yaml:16: facilities.riga.when.deleted is "wait"; '
            "expected one of 'resume' or 'give_up'",
        ),
        (
            "job: {queue: fast}",
            "lingr: 10m",
            "fed.yaml:16: unknown key 'lingr' in facilities.riga; "
            "did you mean 'linger'?",
        ),
        (
            "job: {queue: fast}",
            "job: {ranks_per_node: 0}",
            "fed.yaml:16: facilities.riga.job.ranks_per_node is 0; "
            "expected a number greater than or equal to 1",
        ),
        (
            "stop: {rounds: 3}",
            "stop: {rounds: 3}\nstart_together: 0",
            "fed.yaml:6: start_together is 0; expected a number greater than 0",
        ),
        (
            "task: {name: parts",
            "task: {name: part",
            "fed.yaml:3: There is no task 'part'. Did you mean 'parts'?",
        ),
        (
            "type: remote",
            "type: remot",
            "fed.yaml:15: There is no gateway 'remot'. Did you mean 'remote'?",
        ),
        (
            "mover: copy",
            "mover: cpy",
            "fed.yaml:7: There is no mover 'cpy'. Did you mean 'copy'?",
        ),
        (
            "options: {parts: 2}",
            "options: {parts: two}",
            'fed.yaml:3: task.options.parts is "two"; expected a whole number',
        ),
        (
            "options: {parts: 2}",
            "options: {}",
            "fed.yaml:3: task.options needs the key 'parts'",
        ),
        (
            "task: {name: parts, options: {parts: 2}}",
            "task: parts",
            "fed.yaml:3: task.options needs the key 'parts'",
        ),
        ("steps: 20, ", "", "fed.yaml:9: defaults.work needs the key 'steps'"),
        (
            "endpoint: e-1",
            "tries: 1",
            "fed.yaml:15: facilities.riga.gateway needs the key 'endpoint'",
        ),
        (
            "    gateway: {type: here, site: sites/bergen.yaml}\n",
            "",
            "fed.yaml:11: facilities.bergen needs the key 'gateway'",
        ),
        (
            "    job: {queue: fast}",
            "    profile: alcf/polari",
            "fed.yaml:16: There is no profile 'alcf/polari'. Did you mean "
            "'alcf/polaris'? Known: alcf/aurora, alcf/polaris, cineca/leonardo, "
            "csc/lumi, lcrc/improv, local, nersc/perlmutter, nersc/perlmutter-80, "
            "olcf/frontier.",
        ),
        (
            "  riga:",
            "  Riga:",
            "fed.yaml:14: facilities.Riga: 'Riga' can't be the name of a facility "
            "or federation. Use 1 to 32 of a-z, 0-9, '-' and '_', with a letter or "
            "digit at both ends.",
        ),
        (
            "name: towns",
            "name: towns\nevaluation: {on: rigaa}",
            "fed.yaml:2: evaluation.on names no facility: 'rigaa'; "
            "did you mean 'riga'?",
        ),
        (
            "strategy: average",
            "strategy: mute",
            "fed.yaml:4: The strategy 'mute' does not say which options it has. "
            "Give it an attribute 'Options' that is a pydantic model.",
        ),
        (
            "strategy: average",
            "strategy: {name: careless, dept: 2}",
            "fed.yaml:4: unknown key 'dept' in strategy; did you mean 'depth'?",
        ),
        (
            "strategy: average",
            "strategy: [average]",
            'fed.yaml:4: strategy is ["average"]; expected keys with values',
        ),
        (
            "{steps: 20, lr: 1e-4}",
            "twenty",
            'fed.yaml:9: defaults.work is "twenty"; expected keys with values',
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(
    edit: Any, old: str, new: str, message: str
) -> None:
    edit(old, new)
    assert message in wrong()


@pytest.mark.parametrize("section", ["defaults", "facilities", "evaluation", "model"])
def test_a_section_that_is_no_mapping(section: str) -> None:
    lines = wrong(f"{section}=3")
    assert any(section in line and "keys with values" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("facilities={}", "facilities is {}; expected at least one entry"),
        ("evaluation.on=[]", "evaluation.on is []; expected at least one entry"),
        (
            "stop.node_hours=.inf",
            "stop.node_hours is Infinity; expected a finite number",
        ),
        ("seed=-1", "seed is -1; expected a number greater than or equal to 0"),
        ("model.options=[1]", "model.options is [1]; expected keys with values"),
        ("name=Big Town", "name: 'Big Town' can't be the name"),
    ],
)
def test_values_out_of_range(override: str, message: str) -> None:
    assert any(message in line for line in wrong(override))


def test_all_mistakes_are_shown_once_in_the_order_of_the_file(edit: Any) -> None:
    edit("rounds: 3", "rounds: x")
    edit("steps: 20", "stepz: 20")
    edit("strategy: average", "strategy: averag")
    lines = wrong()
    assert [line.split(":")[1] for line in lines] == ["4", "5", "9", "9"]


def test_a_missing_file() -> None:
    with pytest.raises(SpecError, match=r"There is no file fad\.yaml") as error:
        load_federation("fad.yaml")
    assert error.value.hint == "Did you mean fed.yaml?"


# Locks and hashes


def test_a_lock_loads_back_equal_without_the_file(folder: Path) -> None:
    spec = load_federation("fed.yaml")
    text = lock_text(spec)
    (folder / "fed.yaml").unlink()
    again = federation_from_text(text)
    assert again == spec
    assert lock_text(again) == text
    assert plan_hash(again) == plan_hash(spec)
    assert list(again.facilities) == ["bergen", "riga"]


def test_mistakes_in_a_lock_name_it() -> None:
    text = lock_text(load_federation("fed.yaml")).replace("seed: 0", "seed: -1", 1)
    with pytest.raises(SpecError, match=r"runs/x/lock.yaml:3: seed is -1"):
        federation_from_text(text, name="runs/x/lock.yaml")


def test_the_hash_does_not_depend_on_the_order_of_keys(edit: Any) -> None:
    before = plan_hash(load_federation("fed.yaml"))
    edit("{trainer: linear, source: zeros}", "{source: zeros, trainer: linear}")
    edit("name: towns\n", "")
    edit("stop: {rounds: 3}", "stop: {rounds: 3}\nname: towns")
    assert plan_hash(load_federation("fed.yaml")) == before
    assert len(before) == 64


def test_the_hash_depends_on_what_is_run_not_on_how_it_is_written() -> None:
    plain = plan_hash(load_federation("fed.yaml"))
    assert plan_hash(load_federation("fed.yaml", ["seed=0", "patience=60m"])) == plain
    assert plan_hash(load_federation("fed.yaml", ["seed=1"])) != plain
    assert plan_hash(load_federation("fed.yaml", ["strategy=buffer"])) != plain


NAMES = st.text("abcdefgh0123456789", min_size=1, max_size=8)


@given(
    name=NAMES,
    seed=st.integers(0, 2**63),
    rounds=st.integers(1, 10**6),
    below=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    time=st.floats(1, 1e6),
    source=st.text(st.characters(exclude_categories=["Cs"])),
    facilities=st.lists(NAMES, min_size=1, max_size=3, unique=True),
)
@settings(max_examples=40)
def test_any_plan_survives_its_lock(
    name: str,
    seed: int,
    rounds: int,
    below: float | None,
    time: float,
    source: str,
    facilities: list[str],
) -> None:
    facility = {
        "gateway": {"type": "remote", "endpoint": source, "tries": 3},
        "mover": "copy",
        "job": {"time": time, "account": name},
        "work": {"steps": rounds, "batch": 1, "lr": time},
    }
    spec = FederationSpec.model_validate(
        {
            "name": name,
            "seed": seed,
            "model": {
                "trainer": "linear",
                "source": source,
                "options": {"features": 64},
            },
            "task": {"name": "parts", "options": {"parts": 1, "seed": 0}},
            "strategy": {
                "name": "average",
                "weights": "equal",
                "quorum": 1,
                "deadline": time,
            },
            "stop": {
                "rounds": rounds,
                "target": None if below is None else {"below": below},
            },
            "facilities": dict.fromkeys(facilities, facility),
        }
    )
    again = federation_from_text(lock_text(spec))
    assert again == spec
    assert plan_hash(again) == plan_hash(spec)
