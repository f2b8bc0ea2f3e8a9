"""What `hansa bench throughput` refuses before it asks anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.cli.bench_throughput import nodes_of
from hansa.core.errors import HansaError, UsageError

FEDERATION = """\
name: lines
model: {trainer: softmax, source: zeros, dtype: float32}
task: digits
strategy: {name: fedavg}
stop: {rounds: 1}
defaults: {mover: posix, job: {nodes: 2}, work: {steps: 1, batch: 5}}
facilities:
  alpha: {gateway: {type: local, site: alpha.yaml}}
  beta: {gateway: {type: local, site: beta.yaml}}
"""


def test_node_counts() -> None:
    assert nodes_of("4, 1,2,1") == (1, 2, 4)
    for text in ("", "1,,2", "0", "-1", "two", "1.5"):
        with pytest.raises(UsageError, match="no list of node counts"):
            nodes_of(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name the federation's file"),
        (["--show"], "Nothing has been measured"),
        (["f.yaml"], "which facility?"),
        (["f.yaml", "--facility", "gamma"], "there is no 'gamma'"),
        (["f.yaml", "--facility", "beta"], "can't be divided by 2 nodes"),
        (
            ["f.yaml", "--facility", "beta", "--strong", "--batch", "4"],
            "leave --batch out",
        ),
        (["f.yaml", "--facility", "beta", "--time", "soon"], "--time"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_text(FEDERATION)
    result = CliRunner().invoke(app, ["bench", "throughput", *words])
    assert isinstance(result.exception, HansaError)
    assert said in result.exception.message
    assert not (tmp_path / "runs").exists()
