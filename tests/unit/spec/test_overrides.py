from __future__ import annotations

from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.spec import load_federation, yaml
from hansa.spec.overrides import apply, parse

TEXT = """\
a: {b: 1, c: [x, {y: 2}]}
empty:
text: word
facilities: {riga: {work: {steps: 1}}}
"""


def changed(*overrides: str) -> Any:
    return apply(yaml.parse(TEXT, "f.yaml", "federation"), overrides).data


def refused(*overrides: str) -> SpecError:
    with pytest.raises(SpecError) as error:
        changed(*overrides)
    return error.value


@pytest.mark.parametrize(
    ("text", "action", "keys", "value"),
    [
        ("a.b=3", "set", ("a", "b"), 3),
        ("a=1e-4", "set", ("a",), 0.0001),
        ("a=12:30:00", "set", ("a",), "12:30:00"),
        ("a=x=y", "set", ("a",), "x=y"),
        ("a=", "set", ("a",), None),
        ("a={b: [1, 2]}", "set", ("a",), {"b": [1, 2]}),
        ("+a.b=true", "add", ("a", "b"), True),
        ("~a.b", "remove", ("a", "b"), None),
    ],
)
def test_the_three_forms(
    text: str, action: str, keys: tuple[str, ...], value: object
) -> None:
    override = parse(text)
    assert (override.action, override.keys, override.value) == (action, keys, value)


@pytest.mark.parametrize("text", ["", "a", "=1", "a..b=1", "~a=1", "+a", "~", ".a=1"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no override") as error:
        parse(text)
    assert "stop.rounds=3" in str(error.value.hint)


def test_a_value_that_is_no_yaml() -> None:
    with pytest.raises(SpecError, match=r"override 'a=\[1':1: this is no YAML"):
        parse("a=[1")


def test_set_replaces_and_makes_what_is_missing() -> None:
    data = changed("a.b=2", "empty.x.y=1", "new.key=2", "a.c.1.y=5", "a.c.0=z")
    assert data["a"] == {"b": 2, "c": ["z", {"y": 5}]}
    assert data["empty"] == {"x": {"y": 1}}
    assert data["new"] == {"key": 2}


def test_add_makes_a_key_or_an_item() -> None:
    data = changed("+a.d=1", "+a.c=last", "+a.c.0=first")
    assert data["a"] == {"b": 1, "c": ["first", "x", {"y": 2}, "last"], "d": 1}


def test_remove() -> None:
    assert changed("~a.b", "~a.c.0", "~text")["a"] == {"c": [{"y": 2}]}


def test_they_work_in_order() -> None:
    assert changed("~a", "a.b=7")["a"] == {"b": 7}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("+a.b=2", "a.b has a value already", "Leave the '+' out"),
        ("~a.bb", "there is no 'bb' in a", "Did you mean 'b'?"),
        ("~tex", "there is no 'tex' in the file", "Did you mean 'text'?"),
        ("~zzz.y", "there is no 'zzz' in the file", "There is: a, empty"),
        ("text.x=1", "text is a single value and has no keys", "Set the whole"),
        ("a.c.0.z=1", "a.c.0 is a single value and has no keys", "Set the whole"),
        ("a.c.7=1", "a.c is a list of 2 and has no item '7'", "Count from 0"),
        ("~a.c.x", "a.c is a list of 2 and has no item 'x'", "Count from 0"),
        ("facilities.rga=1", "there is no 'rga' in facilities", "mean 'riga'?"),
        ("facilities.rga.data=1", "there is no 'rga' in facilities", "mean 'riga'?"),
    ],
)
def test_what_can_t_be_changed(text: str, message: str, hint: str) -> None:
    error = refused(text)
    assert error.message.startswith(f"override '{text}': ")
    assert message in error.message
    assert hint in str(error.hint)


def test_a_new_facility_needs_a_plus() -> None:
    assert changed("+facilities.kiel={data: x}")["facilities"]["kiel"] == {"data": "x"}


def test_the_document_is_not_changed() -> None:
    doc = yaml.parse(TEXT, "f.yaml", "federation")
    apply(doc, ["a.b=2", "~text"])
    assert doc.data["a"]["b"] == 1
    assert "text" in doc.data


@pytest.mark.usefixtures("folder")
class TestInAFederation:
    def test_values_arrive(self) -> None:
        spec = load_federation(
            "fed.yaml",
            ["strategy.quorum=2", "stop.rounds=9", "facilities.riga.work.lr=0.25"],
        )
        assert spec.strategy.options["quorum"] == 2
        assert spec.stop.rounds == 9
        assert spec.facilities["riga"].work.options["lr"] == 0.25
        assert spec.facilities["bergen"].work.options["lr"] == 1e-4

    def test_mistakes_name_the_override(self) -> None:
        with pytest.raises(SpecError) as error:
            load_federation(
                "fed.yaml",
                ["stop.ronds=3", "facilities.riga.data.0=7", "defaults.work.lr=x"],
            )
        assert error.value.message.splitlines() == [
            "override 'defaults.work.lr=x': defaults.work.lr is \"x\"; "
            "expected a number",
            "override 'stop.ronds=3': unknown key 'ronds' in stop; "
            "did you mean 'rounds'?",
            "override 'facilities.riga.data.0=7': facilities.riga.data.0 is 7; "
            "expected text (in quotes if it looks like a number)",
        ]

    def test_another_strategy_brings_its_own_options(self) -> None:
        spec = load_federation("fed.yaml", ["strategy=buffer"])
        assert spec.strategy.options == {"size": 2}
        spec = load_federation("fed.yaml", ["strategy={name: buffer, size: 5}"])
        assert spec.strategy.options == {"size": 5}
