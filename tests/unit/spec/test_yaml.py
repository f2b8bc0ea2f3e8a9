from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import SpecError
from hansa.spec import yaml


def parse(text: str) -> Any:
    return yaml.parse(text, "f.yaml", "federation").data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("12:30:00", "12:30:00"),
        ("2026-01-31", "2026-01-31"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("010", 10),
        ("0o14", 12),
        ("~", None),
        ("'3'", "3"),
        ("!!str 5", "5"),
        (".inf", math.inf),
        ("[1, {b: x}]", [1, {"b": "x"}]),
        ("&x [1]", [1]),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    result = parse(f"a: {text}\n")["a"]
    assert result == value
    assert type(result) is type(value)


def test_anchors_repeat_a_value() -> None:
    assert parse("a: &x {k: 1}\nb: *x\n") == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3\n",
            "f.yaml:3: the key 'a' is written twice (first in line 1)",
        ),
        ("a: {b: 1,\n    b: 2}", "f.yaml:2: the key 'b' is written twice"),
        ("", "f.yaml:1: the file is empty"),
        ("- 1", "f.yaml:1: the file must hold keys with values"),
        ("a: 1\nb: [1,", "f.yaml:2: this is no YAML"),
        ("a: b: c", "f.yaml:1: this is no YAML"),
        ("a: *nobody", "f.yaml:1: this is no YAML"),
        ("a: 1\n---\nb: 2", "f.yaml:2: this is no YAML"),
        ("a: \x07", "f.yaml: this is no YAML"),
        ("a: &x [*x]", "f.yaml:1: an anchor that contains itself"),
        ("a: !!binary aGk=", "f.yaml:1: the tag 'tag:yaml.org,2002:binary'"),
        ("a: !mine 3", "f.yaml:1: the tag '!mine'"),
        ("a: 1\nb: !!int x", "f.yaml:2: 'x' is no int"),
        ("1: a", "f.yaml:1: the key 1 is no text"),
        ("? [1]\n: 2", "f.yaml:1: a key must be text"),
        ("<<: {a: 1}", "f.yaml:1: merge keys"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(text)
    assert message in error.value.message


def test_every_key_and_item_has_its_line() -> None:
    doc = yaml.parse("a: 1\n\nb:\n  - x\n  - c: 2\n", "f.yaml", "site")
    lines = {path: place.line for path, place in doc.places.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 5,
        ("b", 1, "c"): 5,
    }
    assert doc.place(("b", 1, "d")).where == "f.yaml:5"


def test_a_missing_file_names_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("a: 1")
    with pytest.raises(SpecError) as error:
        yaml.read(tmp_path / "digit.yaml", "federation")
    assert "digit.yaml" in error.value.message
    assert error.value.hint == f"Did you mean {tmp_path / 'digits.yaml'}?"


def test_a_missing_folder_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no file") as error:
        yaml.read(tmp_path / "nowhere" / "a.yaml", "site")
    assert error.value.hint == "Check the path."


def test_a_folder_and_other_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="can't be read"):
        yaml.read(tmp_path, "site")
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(SpecError, match="UTF-8"):
        yaml.read(tmp_path / "x.yaml", "site")


KEYS = st.text(st.characters(categories=["L", "N"]))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["1e-4", "12:30:00", "2026-01-31", "no", "null", "", "~", "0o7"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(categories=["L", "N"])), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, PLAIN, min_size=1, max_size=4))
def test_what_is_dumped_reads_back_equal(data: dict[str, Any]) -> None:
    again = parse(yaml.dump(data))
    assert again == data
    assert list(again) == list(data)
