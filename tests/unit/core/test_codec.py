"""Every event and command survives JSON; strangers are refused."""

import dataclasses
import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hansa.core.codec import command_from_json, event_from_json, to_json
from hansa.core.commands import Command
from hansa.core.errors import JournalCorrupt, JournalTooNew
from hansa.core.events import Event, TimerFired

EVENTS = get_args(Event)
COMMANDS = get_args(Command)


def through_text(data: dict) -> dict:
    return json.loads(json.dumps(data))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=40)  # of each kind
def test_events_round_trip(kind: type, data: st.DataObject) -> None:
    event = data.draw(st.from_type(kind).filter(_is_comparable))
    assert event_from_json(through_text(to_json(event))) == event


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=40)  # of each kind
def test_commands_round_trip(kind: type, data: st.DataObject) -> None:
    command = data.draw(st.from_type(kind).filter(_is_comparable))
    assert command_from_json(through_text(to_json(command))) == command


def _is_comparable(thing: object) -> bool:
    return thing == dataclasses.replace(thing) and "nan" not in repr(thing)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinities_survive(value: float) -> None:
    event = TimerFired(at=value, timer="t")
    assert event_from_json(through_text(to_json(event))) == event


def test_the_json_form_names_type_and_schema() -> None:
    assert to_json(TimerFired(at=1.5, timer="round-1")) == {
        "type": "TimerFired",
        "schema": 1,
        "at": 1.5,
        "timer": "round-1",
    }


def test_a_newer_schema_is_refused_by_number() -> None:
    data = to_json(TimerFired(at=1.0, timer="t")) | {"schema": 2}
    with pytest.raises(JournalTooNew, match="schema 2; this Hansa reads up to 1"):
        event_from_json(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "Nonsense"}, "no record type Nonsense"),
        ({"schema": None}, "no schema number"),
        ({"timer": 5.5}, "field timer"),
        ({"extra": 1}, "field extra"),
    ],
)
def test_strange_records_are_refused(change: dict, words: str) -> None:
    data = to_json(TimerFired(at=1.0, timer="t")) | change
    with pytest.raises(JournalCorrupt, match=words):
        event_from_json(data)


def test_a_missing_field_is_refused() -> None:
    data = to_json(TimerFired(at=1.0, timer="t"))
    del data["timer"]
    with pytest.raises(JournalCorrupt, match="field timer"):
        event_from_json(data)


@pytest.mark.parametrize("kind", EVENTS + COMMANDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=40)  # of each kind
def test_the_json_form_is_that_of_the_fields_as_declared(
    kind: type, data: st.DataObject
) -> None:
    thing = data.draw(st.from_type(kind))
    fields = TypeAdapter(kind).dump_python(thing, mode="json")
    told = to_json(thing)
    assert list(told) == ["type", "schema", *(f.name for f in dataclasses.fields(kind))]
    words = {"type": kind.__name__, "schema": 1, **fields}
    assert json.dumps(told) == json.dumps(words)


def test_a_whole_number_in_the_place_of_another_is_written_as_that() -> None:
    event = TimerFired(at=2, timer="t")
    assert json.dumps(to_json(event)["at"]) == "2.0"
