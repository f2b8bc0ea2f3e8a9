"""The same federation and seed give the same bytes, in any process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from hansa.coordinator.folder import RunFolder
from hansa.coordinator.replay import replay
from hansa.coordinator.setup import make_coordinator
from hansa.core.errors import StorageFull
from hansa.simulator.simulate import simulate
from hansa.spec.load import federation_from_text

FEDERATION = dedent(
    """
    name: storm
    model: {trainer: softmax, source: zeros, dtype: float32}
    task: digits
    strategy: {name: STRATEGY}
    stop: {rounds: 12, wall_clock: 20d}
    retries: 9
    defaults:
      gateway: {type: local, site: site.yaml}
      mover: posix
      job: {time: 1h}
      linger: 5m
      queue_ahead: 10m
      work: {steps: 40, batch: 32, lr: 0.1}
      simulation:
        queue: {type: lognormal, median: 20m, sigma: 1.2, memory: 0.7, tail: 0.1}
        speed: {seconds_per_step: 20, noise: 0.3}
        failures:
          preemptions_per_hour: 0.3
          node_failures_per_hour: 0.1
          outages: [{at: 3h, lasts: 20m, every: 1d}]
    facilities: {a: {}, b: {}, c: {simulation: {speed: {seconds_per_step: 40}}}}
    simulation: {training: {type: surrogate}, server_bandwidth: 100MB}
    """
)
PROGRAM = """
import sys
from pathlib import Path
from hansa.simulator.simulate import simulate
from hansa.spec.load import federation_from_text
spec = federation_from_text(Path(sys.argv[1]).read_text())
simulate(spec, seed=5, folder=Path(sys.argv[2]))
"""
STRATEGIES = ["fedavg", "fedbuff", "fedasync", "fedqueue", "semisync", "scaffold"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_is_the_same_in_another_process_and_replays(
    tmp_path: Path, strategy: str
) -> None:
    text = FEDERATION.replace("STRATEGY", strategy)
    (tmp_path / "federation.yaml").write_text(text)
    here = tmp_path / "here" / "storm"
    here.parent.mkdir()
    outcome = simulate(federation_from_text(text), seed=5, folder=here)
    there = tmp_path / "there" / "storm"
    there.parent.mkdir()
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "federation.yaml"), str(there)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    mine = RunFolder(here)
    assert mine.journal.read_bytes() == RunFolder(there).journal.read_bytes()
    core = make_coordinator(mine.spec())
    assert replay(mine.records(), core) == outcome.events
    assert core.outcome == outcome.outcome


def test_a_full_disk_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow beyond 20 kB, as if the disk were full."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # half a file would stay
    spec = federation_from_text(FEDERATION.replace("STRATEGY", "fedavg"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageFull, match=r"journal\.jsonl") as caught:
            simulate(spec, folder=tmp_path / "storm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--runs" in (caught.value.hint or "")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    spec = federation_from_text(FEDERATION.replace("STRATEGY", "fedavg"))
    one, two = simulate(spec, seed=1), simulate(spec, seed=2)
    assert one.wall_clock_s != two.wall_clock_s
    assert simulate(spec, seed=1) == one


def test_all_strategies_wait_in_the_same_queue() -> None:
    """The k-th job of a facility waits as long under any strategy."""
    text = FEDERATION.replace("memory: 0.7, ", "").replace("linger: 5m", "linger: 0")
    text = text.replace("queue_ahead: 10m", "queue_ahead: 0")
    waits = []
    for strategy in ("fedavg", "fedasync"):
        spec = federation_from_text(text.replace("STRATEGY", strategy))
        waits.append(simulate(spec, seed=3).queue_wait_s["a"][:2])
    assert waits[0][0] == pytest.approx(waits[1][0])


def test_a_target_that_is_never_reached_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hansa.simulator.simulate.MOST_VERSIONS", 30)
    text = FEDERATION.replace("STRATEGY", "fedavg")
    text = text.replace("{rounds: 12, wall_clock: 20d}", "{target: {below: 1e-9}}")
    outcome = simulate(federation_from_text(text))
    assert (outcome.versions, outcome.target_s) == (30, None)
    assert "30 rounds" in outcome.reason
    assert "The simulation ended it" in outcome.remarks[-1]
