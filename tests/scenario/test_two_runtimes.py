"""The same scripts on both runtimes decide the same, and at about the same times.

The facilities' times have no common divisor, so that no two things happen at once, and
are long against the lanes' polls (10 s at most).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twins import Twins, charged, decisions, times

from hansa.core.events import JobEnded, VersionPublished
from hansa.testing import virtual_time
from hansa.testing.scripted import Script

POLL_S = 10.0
SCRIPTS = {
    "a": Script(queue_s=211.0, train_s=467.0),
    "b": Script(queue_s=1103.0, train_s=307.0),
    "c": Script(queue_s=83.0, train_s=1409.0),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedbuff": {"k": 2},
    "fedasync": {},
    "semisync": {"quorum": 2, "grace": 200},
    "fedvarp": {"quorum": 2, "deadline": 900},
    "mifa": {},
    "fednova": {},
}
ALLOCATIONS = {
    "plain": {},
    "linger": {"linger": 2000.0},
    "ahead": {"queue_ahead": 2000.0},
    "both": {"linger": 500.0, "queue_ahead": 700.0},
}


def published(event: object) -> bool:
    return isinstance(event, VersionPublished)


@pytest.mark.parametrize("allocations", ALLOCATIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_runtimes_take_the_same_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, allocations: str
) -> None:
    twins = Twins(
        tmp_path,
        SCRIPTS,
        strategy=strategy,
        options=STRATEGIES[strategy],
        **ALLOCATIONS[allocations],
    )
    real, simulated = twins.on_asyncio(), twins.on_the_heap(monkeypatch)
    assert decisions(simulated) == decisions(real)
    mine, theirs = times(simulated, published), times(real, published)
    for number, (soon, late) in enumerate(zip(mine, theirs, strict=True)):
        # Each round may see a poll late for the start, the end and the hand-over.
        assert soon <= late <= soon + 3 * POLL_S * max(number, 1) + 1


@pytest.mark.parametrize("allocations", ["plain", "both"])
def test_asyncio_on_scaled_time_takes_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocations: str
) -> None:
    """Time passes by itself here, 500 times as fast: nothing waits for anything."""
    twins = Twins(tmp_path, SCRIPTS, rounds=2, **ALLOCATIONS[allocations])
    real = twins.on_asyncio(partial(virtual_time.run_scaled, haste=500.0))
    simulated = twins.on_the_heap(monkeypatch)
    assert decisions(simulated) == decisions(real)
    assert times(real, published)[-1] >= times(simulated, published)[-1]


@pytest.mark.parametrize("how", ["preempt", "node_fail"])
def test_a_broken_job_is_resumed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    broken = Script(queue_s=211.0, train_s=467.0, ends={"train-0002-a-1.1": how})
    twins = Twins(tmp_path, {**SCRIPTS, "a": broken}, rounds=3)
    real, simulated = twins.on_asyncio(), twins.on_the_heap(monkeypatch)
    assert decisions(simulated) == decisions(real)
    states = [
        sorted(
            (e.assignment, e.number, e.state)
            for e in events
            if isinstance(e, JobEnded) and e.assignment.startswith("train")
        )
        for events in (simulated, real)
    ]
    assert states[0] == states[1]
    assert ("train-0002-a-1", 2, "DONE") in states[0]
    assert charged(simulated) == pytest.approx(charged(real), rel=0.02)
