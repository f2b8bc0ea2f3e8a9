"""The event loop goes on ticking while the store adds up hundreds of megabytes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hansa.coordinator.runtime import Runtime
from hansa.core.commands import Aggregate, Command, Term
from hansa.core.events import Event, RunStarted, VersionPublished
from hansa.core.recipes import LINEAR, Adam, Median, Reducer
from hansa.journal import Journal, Lease
from hansa.store import Measured, Published, Store, write_update

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TENSORS, SIZE = 25, 1_000_000  # 100 MB in fp32
BEAT_S = 0.01
MOST_S = 0.5


class Core:
    """Asks for one aggregation, and is done when it is."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.outcome, self.at, self.digest = "", 0.0, ""
        self.lost: tuple[str, ...] = ()

    def handle(self, event: Event) -> Sequence[Command]:
        if isinstance(event, RunStarted):
            return [self.command]
        if isinstance(event, VersionPublished):
            self.outcome = "done"
        return []

    def needed_versions(self) -> set[int]:
        return set()

    held = spent = needed_versions


async def longest_gap(work: Callable[[], Awaitable[object]]) -> float:
    """Return the longest time between two beats of the loop while something works."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.perf_counter())
            await asyncio.sleep(BEAT_S)

    heart = asyncio.create_task(beat())
    await asyncio.sleep(0)  # the first beat
    await work()
    beats.append(time.perf_counter())
    heart.cancel()
    with suppress(asyncio.CancelledError):
        await heart
    return max(later - one for one, later in itertools.pairwise(beats))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a model of 100 MB and two updates of as much."""
    root = tmp_path_factory.mktemp("large")
    noise = np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)
    model = {f"layer.{i:02d}": noise for i in range(TENSORS)}
    (root / "initial").mkdir()
    save_file(model, root / "initial" / "model.safetensors")
    made = Store(root / "run", "float32")
    made.import_initial(root / "initial")
    shapes = {name: values.shape for name, values in model.items()}
    for name in ("train-0001-a-1", "train-0001-b-1"):
        measured = Measured(assignment=name, facility="a", base=0)
        write_update(
            made.update_dir(name), shapes, model.items(), measured, dtype="float32"
        )
    return made


def started(run: str) -> RunStarted:
    return RunStarted(at=0.0, run=run, plan="", seed=0, facilities=(), started=0.0)


def command(version: int, reducer: Reducer, adaptive: bool) -> Aggregate:
    terms = (
        Term(ref="version/0", coefficient=1.0),
        Term(ref="update/train-0001-a-1", coefficient=0.5),
        Term(ref="update/train-0001-b-1", coefficient=0.5),
    )
    if adaptive:
        return Aggregate(
            version=version, terms=terms, reducer=reducer, optimizer=Adam()
        )
    return Aggregate(version=version, terms=terms, reducer=reducer)


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for the disk: the journal does so on the loop, but briefly."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def run(place: Path, store: object, command: Aggregate) -> float:
    """Carry an aggregation out as a run does; return the loop's longest gap."""
    with (
        Lease.acquire(place / "lease", time.time()) as lease,
        Journal.open(place / "journal.jsonl", lease) as journal,
    ):
        core, clock = Core(command), time.monotonic
        runtime = Runtime(core, journal, store, clock=clock, keep=9)
        return asyncio.run(longest_gap(lambda: runtime.run({}, [started("r")])))


@pytest.mark.parametrize(
    ("version", "reducer", "adaptive"),
    [(1, LINEAR, False), (2, Median(), True)],
    ids=["sum", "median-and-adam"],
)
def test_the_loop_ticks_during_a_large_aggregation(
    tmp_path: Path, store: Store, version: int, reducer: Reducer, adaptive: bool
) -> None:
    gap = run(tmp_path, store, command(version, reducer, adaptive))
    assert store.manifest(version).reducer == reducer
    assert gap < MOST_S


class Slow:
    """A store that works for as long as the test allows the loop to stand still."""

    def aggregate(self, version: int, *rest: object) -> Published:
        time.sleep(MOST_S)
        return Published(version=version, sha256="", bytes=0, seconds=MOST_S)

    def collect_garbage(self, *rest: object) -> None:
        pass


async def inline(work: Callable[..., object], *args: object) -> object:
    return work(*args)


@pytest.mark.parametrize("blocks", [False, True])
def test_work_on_the_loop_itself_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: bool
) -> None:
    if blocks:
        monkeypatch.setattr(asyncio, "to_thread", inline)
    gap = run(tmp_path, Slow(), command(1, LINEAR, adaptive=False))
    assert (gap >= MOST_S) == blocks
