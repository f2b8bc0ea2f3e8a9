"""`hansa run` with every strategy, on the four towns that learn digits."""

from __future__ import annotations

import pytest
from runs import Bench

from hansa.core import plugins

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OPTIONS: dict[str, list[str]] = {
    "fedadagrad": ["strategy.lr=0.05"],
    "fedadam": ["strategy.lr=0.02"],
    "fedyogi": ["strategy.lr=0.02"],
    "fedasync": ["stop.rounds=6"],
    "fedbuff": ["stop.rounds=4"],
    "fedcompass": ["stop.rounds=6", "strategy.min_steps=5", "strategy.max_steps=20"],
    "fedqueue": ["strategy.t_sync=5s", "strategy.theta=1s", "strategy.min_steps=5"],
    "tide": ["stop.rounds=6"],
}
"""Where the strategy's own defaults are not for runs of seconds.

Asynchronous versions are made of fewer updates, so it takes more of them.
"""


@pytest.mark.parametrize("name", plugins.names(plugins.STRATEGIES))
def test_every_strategy_runs_and_learns(bench: Bench, name: str) -> None:
    bench.hansa("init", "mine", "--example", "digits")
    bench.without_pictures()
    changes = [f"strategy.name={name}", "stop.rounds=2", "defaults.linger=1m"]
    changes += OPTIONS.get(name, [])
    run = bench.data("run", "mine/digits.yaml", *changes, "--id", "r")
    assert (run["outcome"], run["strategy"]) == ("done", name)
    first, *_, last = (version["eval_loss"] for version in run["versions"])
    assert last < 0.9 * first
    assert sum(one["updates_applied"] for one in run["facilities"].values()) >= 3


@pytest.mark.parametrize("command", ["check", "plan", "run", "run --dry-run"])
def test_what_a_strategy_cannot_do_is_said_before_anything_is_spent(
    bench: Bench, command: str
) -> None:
    bench.hansa("init", "mine", "--example", "digits")
    changes = ["strategy.name=fedbuff", "strategy.k=9"]
    bench.hansa(*command.split(), "mine/digits.yaml", *changes, code=2)
    assert "A buffer of 9 updates is larger than the federation" in bench.stderr
    assert "Lower strategy.k or add facilities" in bench.stderr
    assert not (bench.root / "runs").exists()
