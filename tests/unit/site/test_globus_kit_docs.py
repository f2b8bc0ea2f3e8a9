"""What docs/globus.md tells people to type is what the command line takes."""

from __future__ import annotations

import re
import shlex
import uuid
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hansa.cli.app import app
from hansa.spec import load_federation, load_site

PAGE = Path(__file__).parents[3] / "docs" / "globus.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.split(r"(?m)^```", TEXT)[1::2]
SNIPPETS = [block.removeprefix("yaml\n") for block in BLOCKS if block[0] != "\n"]


def commands() -> list[str]:
    """Every line of a block that calls hansa, with its options."""
    shell = [block for block in BLOCKS if block[0] == "\n"]
    lines = [line.split(" #")[0] for block in shell for line in block.splitlines()]
    calls = (re.match(r"(?:\S*/)?hansa ((?!--)\w.*)", line) for line in lines)
    return [call[1].replace("...", "") for call in calls if call]


def filled(text: str) -> str:
    return re.sub(r"\b(UUID\w*|ID)\b", lambda _: str(uuid.uuid4()), text)


@pytest.mark.parametrize("line", commands())
def test_each_command_is_there_with_its_options(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known, line


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 15


def test_the_federation_loads(tmp_path: Path) -> None:
    file = tmp_path / "federation.yaml"
    file.write_text(filled(SNIPPETS[0]))
    spec = load_federation(file)
    assert list(spec.facilities) == ["polaris", "perlmutter"]
    for facility in spec.facilities.values():
        assert facility.gateway.type == "globus_compute"
        assert facility.mover.options["here"]["path"] == "/data/hansa"


def snippet(key: str) -> str:
    """Return the short part of a file that begins with a key."""
    (found,) = [text for text in SNIPPETS if text.startswith(f"{key}: ")]
    return filled(found).split("   #")[0].strip()


@pytest.mark.parametrize("key", ["gateway", "mover"])
def test_block_and_bucket_load(tmp_path: Path, key: str) -> None:
    """The short parts take the place of the same part of the federation."""
    section = snippet(key)
    whole = re.sub(rf"(?m)^    {key}: .*$", f"    {section}", filled(SNIPPETS[0]))
    if key == "mover":
        whole = re.sub(r"  mover:\n(    .*\n){3}", "", whole)
    file = tmp_path / "federation.yaml"
    file.write_text(whole)
    chosen = [getattr(one, key) for one in load_federation(file).facilities.values()]
    wanted: dict[str, Any] = {"gateway": "globus_compute", "mover": "s3"}
    assert [one.type for one in chosen] == [wanted[key]] * 2
    if key == "gateway":
        assert chosen[0].options["block"]["nodes"] == 4


def test_the_site_of_a_block_loads(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    rest = f"name: x\nmailbox: {tmp_path}/mail\ntasks: {{digits: {{}}}}\n"
    file.write_text(f"{rest}{snippet('scheduler')}\n{snippet('environment')}\n")
    site = load_site(file)
    assert site.scheduler.options["nodes"] == 4
    assert "$PARSL_MPI_NODELIST" in site.environment.launch


def test_the_facilitys_word_about_buckets_loads(tmp_path: Path) -> None:
    (words,) = re.findall(r"`(exchange: .*)`", TEXT)
    file = tmp_path / "site.yaml"
    rest = f"name: x\nscheduler: local\nmailbox: {tmp_path}/mail\n"
    file.write_text(f"{rest}tasks: {{digits: {{}}}}\n{words}\n")
    assert load_site(file).exchange.hosts == ("my-hansa.s3.us-east-1.amazonaws.com",)
