"""`hansa simulate --from RUN`, on a simulated run, whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hansa.cli.app import app
from hansa.core.errors import HansaError, SpecError, UsageError
from hansa.journal.line import Record, decode, encode

TRUTH = """\
name: known
model: {trainer: softmax, source: zeros}
task: digits
strategy: {name: fedavg}
stop: {rounds: 3}
defaults:
  gateway: {type: local, site: /s.yaml}
  mover: posix
  job: {time: 2h}
  work: {steps: 50, batch: 8, lr: 0.1}
simulation:
  training: {type: none, bytes: 80MB}
  evaluation: facility
facilities:
  a: {simulation: {queue: {type: replay, waits: [900, 600, 700]}}}
  b: {simulation: {queue: {type: replay, waits: [300, 500, 100]}}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run `r` in it, whose times are known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known.yaml").write_text(TRUTH)
    hansa("simulate", "known.yaml", "--id", "r")
    return tmp_path


def hansa(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def data(*arguments: str, code: int = 0) -> Any:
    return json.loads(hansa(*arguments, "--json", code=code).stdout)["data"]


def refused(*arguments: str) -> HansaError:
    with pytest.raises(HansaError) as caught:
        CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    return caught.value


def test_a_check_that_passes(place: Path) -> None:
    told = hansa("simulate", "--from", "r", "--check").stdout
    assert "an error of +0.0%; within 10%." in told
    made = data("simulate", "--from", "runs/r/", "--check")
    assert made["passed"]
    assert made["rows"][0]["what"] == "wall clock"


def test_a_check_that_fails_exits_with_1(place: Path) -> None:
    """The run is made to end much later than its work explains."""
    journal = place / "runs/r/journal.jsonl"
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    record = decode(last)
    late = type(record.event)(at=99_999.0, outcome="done", reason="")
    lines.append(encode(Record(record.seq, record.digest, late)))
    journal.write_bytes(b"".join(lines))
    told = hansa("simulate", "--from", "r", "--check", code=1).stdout
    assert "more than 10%." in told


def test_what_if(place: Path) -> None:
    """With lingering, only the first order of each facility waits in its queue."""
    plain = data("simulate", "--from", "r", "--no-folder")
    assert plain["fit"]["run"] == "r"
    assert any("assumed: handover" in note for note in plain["fit"]["notes"])
    lingering = data("simulate", "--from", "r", "defaults.linger=1h", "--no-folder")
    # a's third job waits 700 s, its second 600 s (an evaluation took none of these).
    assert lingering["wall_clock_s"] < plain["wall_clock_s"] - 600
    told = hansa("simulate", "--from", "r", "strategy.name=fedbuff", "--id", "other")
    assert "Fitted from r" in told.stdout
    assert "r itself made 3 versions" in told.stdout
    assert "note: Measured nowhere, so assumed: handover" in told.stderr
    assert (place / "runs/other/journal.jsonl").is_file()


def test_the_fit_can_be_written_down_and_simulated(place: Path) -> None:
    told = hansa("simulate", "--from", "r", "--write", "study.yaml", "stop.rounds=2")
    assert told.stdout == "study.yaml\n"
    text = (place / "study.yaml").read_text()
    assert text.startswith("# Fitted by `hansa simulate --from r`.\n# ")
    assert data("simulate", "study.yaml", "--no-folder")["versions"] == 2
    error = refused("simulate", "--from", "r", "--write", "study.yaml")
    assert isinstance(error, UsageError)
    assert "exists" in error.message
    error = refused("simulate", "--from", "r", "--write", "no/where.yaml")
    assert "can't be written" in error.message


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--from", "nobody"), UsageError, "no run 'nobody'"),
        (("--check",), UsageError, "need a run"),
        (("known.yaml", "--write", "x.yaml"), UsageError, "need a run"),
        (("--from", "r", "--check", "stop.rounds=2"), UsageError, "'stop.rounds=2'"),
        (("--from", "r", "known.yaml"), SpecError, "'known.yaml' is no override"),
    ],
)
def test_what_makes_no_sense(
    place: Path, arguments: tuple[str, ...], kind: type[HansaError], words: str
) -> None:
    error = refused("simulate", *arguments)
    assert isinstance(error, kind)
    assert words in error.message
