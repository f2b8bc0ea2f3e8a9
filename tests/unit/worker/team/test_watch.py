"""The watch: who is lost, who is told, and who is ended, over real connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from lines import PEERS, connected

from hansa.core.errors import HansaError, SpecError, StorageFull, WorkerError
from hansa.worker.team import watch as module
from hansa.worker.team.watch import Watch


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_S", 0.05), ("QUIET_S", 1.0), ("GRACE_S", 0.2)):
        monkeypatch.setattr(module, name, seconds)


class Ends:
    """Counts how often a process would have been ended."""

    def __init__(self) -> None:
        self.count = threading.Semaphore(0)

    def __call__(self) -> None:
        self.count.release()

    def within(self, seconds: float) -> bool:
        return self.count.acquire(timeout=seconds)


@contextmanager
def team(world: int = 3, ends: Ends | None = None) -> Iterator[list[Watch]]:
    """Start the watches of a team; rank 0 first."""
    watches = [Watch(rank, PEERS, ends or Ends()) for rank in range(world)]
    for rank in range(1, world):
        near, far = connected()
        watches[0].add(rank, near)
        watches[rank].add(0, far)
    for one in watches:
        one.start()
    try:
        yield watches
    finally:
        for one in watches:
            one.close()


def until(holds: Callable[[], object], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def lost(watch: Watch) -> HansaError:
    until(lambda: watch.loss)
    assert watch.loss is not None
    return watch.loss


def test_a_rank_that_has_ended_is_named_to_all() -> None:
    told: list[str] = []
    with team() as (first, second, third):
        second.on_loss = lambda loss: told.append(loss.message)
        third.close()
        error = lost(first)
        assert error.message == (
            "Rank 2 on n2 has ended without a word. Its log is /jobs/2.log."
        )
        assert error.transient
        with pytest.raises(WorkerError, match="Rank 2 on n2 has ended"):
            second.take()
        assert lost(second).to_json() == error.to_json()
        assert set(told) == {error.message}  # on each beat until it has ended
        with pytest.raises(WorkerError, match="Rank 2 on n2"):
            first.check()


def test_the_end_of_rank_0_is_seen_by_the_others() -> None:
    with team() as (first, second, third):
        first.close()
        for one in (second, third):
            assert lost(one).message.startswith("Rank 0 on n0 has ended")


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_that_hangs_is_lost_after_a_while(silent: int) -> None:
    with team(2) as watches:
        gate = threading.Event()
        watches[silent]._tick = lambda: gate.wait(20)
        words = f"Rank {silent} on n{silent} was not heard of for 1 s."
        assert lost(watches[1 - silent]).message.startswith(words)
        gate.set()


def test_a_rank_may_say_that_it_will_be_silent() -> None:
    with team(2) as (first, second):
        gate = threading.Event()
        with second.slow():
            second._tick = lambda: gate.wait(20)
            until(lambda: first._lines[1].quiet_s == module.SLOW_S)
            assert first.take(1.5) is None  # longer than the others may be
            gate.set()
        del second._tick
        until(lambda: first._lines[1].quiet_s == 1.0)
        assert first.loss is None


def test_who_has_slept_itself_does_not_blame_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with team(2) as (first, second):
        until(lambda: first._lines[1].heard > 0)
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
        assert first.take(0.3) is None
        assert first.loss is second.loss is None


def test_ranks_may_come_long_after_each_other() -> None:
    near, far = connected()
    near.heard -= 300
    first, second = Watch(0, PEERS, Ends()), Watch(1, PEERS, Ends())
    first.add(1, near)
    second.add(0, far)
    first.start()
    assert first.take(0.2) is None  # rank 1 has just been told that all are there
    second.start()
    assert first.take(0.2) is None
    assert first.loss is None
    for one in (first, second):
        one.close()


def test_a_failure_crosses_with_its_code_and_hint() -> None:
    failure = SpecError("The example is too long.", hint="Cut it.")
    with team() as (first, second, third):
        second.fail(failure)
        for one in (first, second, third):
            error = lost(one)
            assert isinstance(error, SpecError)
            assert error.message == (
                "Rank 1 on n1 failed: The example is too long. Its log is /jobs/1.log."
            )
            assert (error.hint, error.transient) == ("Cut it.", False)
        # An error of a collective is not the reason: the others have left it.
        assert third.reason(RuntimeError("connection closed by peer")) is third.loss
        assert third.reason(failure) is third.loss


def test_the_failure_of_rank_0_ends_the_others() -> None:
    with team() as (first, second, third):
        first.fail(StorageFull("No space."))
        for one in (second, third):
            assert isinstance(lost(one), StorageFull)
            assert lost(one).message.startswith("Rank 0 on n0 failed: No space.")


def test_an_error_of_ones_own_is_the_reason_after_a_moment() -> None:
    with team(2) as (first, _):
        assert first.reason(ValueError("a bug")) is None


def test_who_does_not_end_is_ended() -> None:
    ends = Ends()
    told: list[HansaError | None] = []
    with team(2, ends) as (first, second):
        first.on_loss = told.append
        second.close()
        assert ends.within(20)
        assert told[:2] == [first.loss, first.loss]  # at once, and before the end


def test_a_watch_that_fails_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends()
    with team(2, ends) as (first, second):
        second.post({"beat": "soon"})
        assert ends.within(20)
        assert "can't watch the others" in caplog.text
        del first


def test_words_arrive_in_order_and_also_early_ones() -> None:
    near, far = connected()
    for count in range(3):
        far.send({"word": count, "text": "x" * 50_000})
    assert near.wait_for("word", 20)["word"] == 0
    one, other = Watch(0, PEERS, Ends()), Watch(1, PEERS, Ends())
    one.add(1, near)
    other.add(0, far)
    far.send({"word": 3})
    one.start()
    other.start()
    taken = [one.take(20) for _ in range(3)]
    assert [(entry[0], entry[1]["word"]) for entry in taken if entry] == [
        *((1, 1), (1, 2), (1, 3))
    ]
    other.close({"bye": True})
    entry = one.take(20)
    assert entry is not None
    assert entry[1] == {"bye": True}
    one.close()
    assert one.loss is other.loss is None


def test_a_word_that_can_not_be_sent_ends_the_line() -> None:
    near, far = connected()
    near.sock.settimeout(0.05)
    near.send({"text": "x" * 50_000_000})  # nobody reads
    near.sock.settimeout(20)
    with pytest.raises(ConnectionResetError, match="has ended"):
        near.receive()
    near.close()
    far.close()


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\n", b"17\n", b"[" * 60_000 + b"\n", b""]
)
def test_what_is_none_of_hansas_words_is_an_error(data: bytes) -> None:
    near, far = connected()
    far.sock.sendall(data)
    far.close()
    with pytest.raises(OSError, match=r"JSON|ended"):
        near.wait_for("word", 20)
    near.close()
