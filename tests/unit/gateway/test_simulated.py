"""Facilities that exist in simulations only are refused before anything is spent."""

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.coordinator.preflight import check_all
from hansa.coordinator.setup import make_gateway, make_mover
from hansa.core import plugins
from hansa.core.errors import SpecError, UsageError
from hansa.mover.base import Place
from hansa.spec import load_federation

FILE = """\
name: dream
model: {trainer: noop, source: zeros}
task: noop
strategy: fedavg
stop: {rounds: 1}
defaults: {gateway: simulated, mover: simulated, work: {steps: 5}}
facilities:
  riga: {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dream.yaml"
    path.write_text(FILE)
    return path


def test_neither_can_be_made(file):
    facility = load_federation(file).facilities["riga"]
    with pytest.raises(UsageError, match="in simulations only") as gateway:
        make_gateway(facility)
    with pytest.raises(UsageError, match="in simulations only") as mover:
        make_mover(facility, Place(mailbox=Path("/mail")))
    for caught in (gateway, mover):
        assert "`hansa simulate FILE`" in caught.value.hint
        assert not caught.value.transient


@pytest.mark.parametrize("group", [plugins.GATEWAYS, plugins.MOVERS])
def test_they_have_no_options(group):
    options = plugins.find(group, "simulated").Options
    assert options.model_validate({}).model_dump() == {}
    with pytest.raises(ValidationError, match="Extra inputs"):
        options.model_validate({"host": "x"})


def test_a_check_says_so(file):
    (check,) = asyncio.run(check_all(load_federation(file), "dream-1"))
    ((what, hint),) = check.problems
    assert "in simulations only" in what
    assert "`hansa compare FILE`" in hint


def test_a_run_is_refused_and_leaves_nothing(file, tmp_path):
    runs = tmp_path / "runs"
    done = CliRunner().invoke(app, ["run", str(file), "--runs", str(runs)])
    assert done.exit_code != 0
    assert "not ready" in str(done.exception)
    assert not runs.exists()


def test_one_without_the_other_is_refused_with_its_line(file):
    file.write_text(FILE.replace("riga: {}", "riga: {mover: posix}"))
    with pytest.raises(SpecError) as caught:
        load_federation(file)
    assert caught.value.message == (
        f"{file}:8: of facilities.riga either gateway and mover are simulated, or none"
    )
