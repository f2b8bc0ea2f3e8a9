from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from hansa.core import plugins
from hansa.core.units import Bytes, Seconds
from hansa.mover.rsync import RsyncOptions
from hansa.spec import FederationSpec, SiteSpec, schema
from hansa.spec.walk import located


class Inner(BaseModel):
    """An inner part.

    Attributes:
        depth: How deep it goes,
            in levels.
    """

    depth: int = 2


class Everything(BaseModel):
    """Has all kinds of fields."""

    whole: int = Field(3, ge=1, lt=9, description="A number.")
    part: float | None = Field(None, gt=0)
    span: Seconds = 5400.0
    size: Bytes | None = None
    word: Literal["a", "b"] = "a"
    words: list[str] = Field(default_factory=list)
    table: dict[str, float] = Field(default_factory=dict, description="a | b")
    inner: Inner | None = None
    must: str
    rows: list[Inner] | None = None


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for inner in schema.models_in(field.annotation):
            found |= models(inner)
    return found


@pytest.mark.parametrize("model", [FederationSpec, SiteSpec])
def test_every_key_has_a_meaning(model: type[BaseModel]) -> None:
    for part in models(model):
        assert part.__doc__
        for name, field in part.model_fields.items():
            assert field.description, (part, name)
            assert field.description != "a duration", (part, name)


def test_a_table_of_keys() -> None:
    assert schema.keys_table(Everything).splitlines()[2:] == [
        "| `whole` | whole number >= 1 < 9 | `3` | A number |",
        "| `part` | number > 0 | `null` |  |",
        "| `span` | duration | `90m` | A duration |",
        "| `size` | size | `null` |  |",
        '| `word` | `a` or `b` | `"a"` |  |',
        "| `words` | list of text | `[]` |  |",
        "| `table` | keys with values | `{}` | A \\| b |",
        "| `inner` | section | `null` |  |",
        "| `must` | text | required |  |",
        "| `rows` | list of sections | `null` |  |",
    ]


def test_what_comes_from_another_model_has_its_meaning() -> None:
    docs = schema.attribute_docs(RsyncOptions)
    assert docs["identity"].startswith("File of the private key")
    assert docs["path"].startswith("The mailbox root")


def test_meanings_come_from_the_docstring_too() -> None:
    assert schema.attribute_docs(Inner) == {"depth": "How deep it goes, in levels."}
    table = schema.keys_table(Inner)
    assert "| How deep it goes, in levels |" in table


def test_every_section_has_its_table() -> None:
    text = schema.federation_tables()
    for section in ("stop.target", "facilities.<name>.job", "evaluation", "model"):
        assert f"### `{section}`\n" in text
    assert "| `defaults` | section |" in text
    assert "### `tasks.<name>`\n" in schema.site_tables()
    assert "| `cache` | path | `.cache` in the mailbox |" in schema.site_tables()


def test_a_section_that_its_type_decides_has_a_table_for_each_type() -> None:
    text = schema.federation_tables()
    for tag in ("lognormal", "backfill", "replay"):
        assert f"### `facilities.<name>.simulation.queue`, `type: {tag}`\n" in text
    assert "| `training` | text or section | `surrogate` |" in text


def test_plug_ins_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ours:
        Options = type("Options", (Everything,), {"__module__": "hansa.strategy.x"})

    class Foreign:
        Options = Everything

    found = {"ours": Ours, "foreign": Foreign, "mute": object()}
    monkeypatch.setattr(plugins, "find", lambda group, name: found[name])
    monkeypatch.setattr(
        plugins, "names", lambda group: [] if "strat" not in group else list(found)
    )
    text = schema.plugin_tables()
    assert text.startswith("### strategy `ours`\n")
    assert "#### `inner`\n" in text
    assert "foreign" not in text


def test_json_schema_takes_files_as_people_write_them() -> None:
    federation = schema.federation_schema()
    json.dumps(federation)
    assert "defaults" in federation["properties"]
    assert "required" not in federation["$defs"]["FacilitySpec"]
    assert {"type": "string"} in federation["properties"]["strategy"]["anyOf"]
    assert federation["properties"]["patience"]["type"] == ["number", "string"]
    assert federation["additionalProperties"] is False
    queue = federation["$defs"]["FacilitySimulation"]["properties"]["queue"]
    assert len(queue["anyOf"]) == 3
    assert "required" not in federation["$defs"]["LognormalQueue"]
    site = schema.site_schema()
    assert site["required"] == ["name", "scheduler", "mailbox", "tasks"]


def test_models_are_found_by_path() -> None:
    _, found = located(FederationSpec, ("facilities", "riga", "job"))
    assert found is not None
    assert found.__name__ == "JobSpec"
    assert located(FederationSpec, ("nothing", "here")) == (("nothing", "here"), None)
    assert located(Everything, ("rows", 3)) == (("rows", 3), Inner)


def test_the_type_that_pydantic_puts_into_a_path_is_no_key() -> None:
    loc = ("facilities", "riga", "simulation", "queue", "replay", "waits", 3)
    path, _ = located(FederationSpec, loc)
    assert path == ("facilities", "riga", "simulation", "queue", "waits", 3)
    path, owner = located(FederationSpec, loc[:5])
    assert path == loc[:4]
    assert owner is not None
    assert owner.__name__ == "ReplayQueue"
    path, owner = located(FederationSpec, (*loc[:4], "unheard-of", "x"))
    assert (path, owner) == ((*loc[:4], "x"), None)
