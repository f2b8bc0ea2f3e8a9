"""Allocations: several orders in one batch job, and words that reach it meanwhile."""

from __future__ import annotations

import itertools
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
from worker_place import FIRST, Place, Story, on_step, read_job, same_bits

from hansa.core.errors import (
    HansaError,
    IntegrityError,
    PolicyError,
    StorageFull,
    WorkerError,
)
from hansa.mailbox import handover
from hansa.mailbox.files import write_json
from hansa.mailbox.handover import Closed, Handover
from hansa.mailbox.state import JobNotes
from hansa.worker import allocation
from hansa.worker.allocation import Allocation
from hansa.worker.job import AnyJob
from hansa.worker.job import read_job as read_any
from hansa.worker.saver import Saver
from hansa.worker.session import Session
from hansa.worker.signals import Stop
from hansa.worker.team import Team
from hansa.worker.team.crew import Crew
from hansa.worker.team.watch import Peer, Watch
from hansa.worker.trainers.softmax import Softmax
from hansa.worker.walltime import Walltime

SECOND, THIRD, AHEAD = "train-0002-a-1", "train-0003-a-1", "ahead-0001-a-1"


def work(
    path: Path,
    story: Story,
    walltime: Walltime | None = None,
    stop: Stop | None = None,
) -> None:
    job: AnyJob = read_any(path)
    Allocation(
        job, stop or Stop(now=story.clock.now), story.time, walltime, story.clock
    ).run()


def entries(host: Path) -> list[object]:
    """Return what the host's numbers were taken for: keys of orders, or "closed"."""
    found = handover.entries(JobNotes(host.parent))
    return [one.job if isinstance(one, Handover) else "closed" for one in found]


def leave(path: Path) -> None:
    write_json(JobNotes(path.parent).leave, {"schema": 1})


def takes(monkeypatch: pytest.MonkeyPatch, story: Story, seconds: float) -> None:
    """Let every step take so many seconds of the story."""
    original = Softmax.step

    def step(self: Softmax, batch: Any) -> float:
        story.time += seconds
        return original(self, batch)

    monkeypatch.setattr(Softmax, "step", step)


@pytest.fixture
def story() -> Story:
    return Story()


def test_the_next_order_is_taken_on_and_then_nobody_comes(
    place: Place, story: Story
) -> None:
    host = place.job(linger_s=60.0)
    order = place.job(assignment=SECOND, order={"round": 2})
    phases: list[object] = []

    def publish_and_hand() -> None:
        phases.append(place.phase())
        place.publish(3, seed=2)
        assert place.hand(host, 1, order)

    story.at(40, publish_and_hand)
    work(host, story)
    assert phases == ["lingering"]
    assert (place.update().base, place.update(SECOND).base) == (0, 3)
    assert place.bound(assignment=SECOND)["base"] == 3
    assert place.phase() == place.phase(assignment=SECOND) == "done"
    assert entries(host) == [f"{SECOND}.1", "closed"]
    assert story.time == pytest.approx(1100, abs=1)


def test_an_order_behind_a_closed_number_is_never_taken(
    place: Place, story: Story
) -> None:
    host = place.job(linger_s=5.0)
    work(host, story)
    assert not place.hand(host, 1, place.job(assignment=SECOND))
    assert entries(host) == ["closed"]


def test_orders_are_done_in_turn_with_a_log_each(
    place: Place, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host = place.job(linger_s=5.0)
    orders = [place.job(assignment=name) for name in (SECOND, THIRD)]
    for number, order in enumerate(orders, 1):
        assert place.hand(host, number, order)
    work(host, story)
    assert place.update(SECOND).steps == place.update(THIRD).steps == 6
    logs = [place.mailbox.job(name, 1).log for name in (SECOND, THIRD)]
    second, third = (path.read_text() for path in logs)
    assert f"{SECOND}.1 is done in the allocation of {FIRST}.1" in second
    assert f"{SECOND} trains from version 0" in second
    assert THIRD not in second
    assert SECOND not in third
    assert not place.mailbox.job(FIRST, 1).log.exists()  # the batch system writes it


def test_a_job_queued_ahead_waits_for_its_first_order(
    place: Place, story: Story
) -> None:
    host = place.ahead(ahead_s=600.0, linger_s=30.0)
    order = place.job(assignment=SECOND)
    story.at(500, lambda: place.hand(host, 1, order))
    work(host, story)
    assert place.update(SECOND).steps == 6
    assert story.time == pytest.approx(1530, abs=1)
    assert place.phase(assignment=AHEAD) == "done"


def test_a_job_queued_ahead_that_nobody_needs(place: Place, story: Story) -> None:
    host = place.ahead(ahead_s=600.0)
    work(host, story)
    assert entries(host) == ["closed"]
    assert story.time == pytest.approx(1600, abs=1)
    assert not place.mailbox.updates.exists()


def test_without_lingering_an_ahead_job_takes_one_order(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = place.ahead(ahead_s=600.0)
    order, other = (place.job(assignment=name) for name in (SECOND, THIRD))
    late: list[bool] = []
    on_step(
        monkeypatch, lambda call, loss: late.append(place.hand(host, 2, other)) or loss
    )
    assert place.hand(host, 1, order)
    work(host, story)
    assert not any(late)
    assert entries(host) == [f"{SECOND}.1", "closed"]
    assert story.time == 1000


def test_orders_that_were_quicker_than_the_closing_are_done(
    place: Place, story: Story
) -> None:
    host = place.ahead(ahead_s=600.0)
    for number, name in enumerate((SECOND, THIRD), 1):
        assert place.hand(host, number, place.job(assignment=name))
    work(host, story)
    assert place.update(THIRD).steps == 6
    assert entries(host) == [f"{SECOND}.1", f"{THIRD}.1", "closed"]


def test_an_order_in_the_moment_of_closing_is_done(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, order = place.job(linger_s=5.0), place.job(assignment=SECOND)
    real = handover.take

    def take(notes: JobNotes, number: int, entry: Any) -> bool:
        if number == 1 and isinstance(entry, Closed):
            assert place.hand(host, 1, order)
        return real(notes, number, entry)

    monkeypatch.setattr(allocation.handover, "take", take)
    work(host, story)
    assert entries(host) == [f"{SECOND}.1", "closed"]
    assert place.update(SECOND).steps == 6


# Ranks ----------------------------------------------------------------------------


class Lone(Crew):
    """Rank 0 of two, for orders that it does alone."""

    def __init__(self) -> None:
        peers = {1: Peer(1, "n1", "/jobs/rank-0001.log")}
        super().__init__(Team(world=2), Watch(0, peers), peers, "")

    def lose(self) -> None:
        self.watch.lose(WorkerError("Rank 1 on n1 has ended.", transient=True))


def test_without_all_its_ranks_an_allocation_does_no_more(
    place: Place, story: Story
) -> None:
    host, crew = place.job(linger_s=3600.0), Lone()
    story.at(10, crew.lose)
    stop = Stop(now=story.clock.now)
    Allocation(read_any(host), stop, story.time, None, story.clock, crew).run()
    assert story.time == pytest.approx(1010, abs=1)
    assert (place.phase(), entries(host)) == ("done", ["closed"])

    again = place.job(assignment=THIRD, linger_s=3600.0)
    assert place.hand(again, 1, place.job(assignment=SECOND))
    Allocation(read_any(again), stop, story.time, None, story.clock, crew).run()
    refused = place.status(assignment=SECOND)
    assert refused["phase"] == "refused"
    assert "Rank 1 on n1 has ended" in refused["error"]["message"]
    assert refused["error"]["transient"]
    crew.watch.close()


# Words ------------------------------------------------------------------------------


def test_a_host_that_is_told_to_leave_lingers_no_more(
    place: Place, story: Story
) -> None:
    host = place.job(linger_s=3600.0)
    story.at(10, lambda: leave(host))
    work(host, story)
    assert story.time == pytest.approx(1010, abs=1)
    assert entries(host) == ["closed"]
    assert place.phase() == "done"


def test_told_to_leave_it_finishes_what_it_has(place: Place, story: Story) -> None:
    host = place.job(linger_s=3600.0)
    leave(host)
    assert place.hand(host, 1, place.job(assignment=SECOND))
    work(host, story)
    assert place.update().steps == place.update(SECOND).steps == 6
    assert story.time == 1000


def test_an_order_that_was_given_up_is_passed_over(place: Place, story: Story) -> None:
    host = place.job(linger_s=5.0)
    given_up, order = (place.job(assignment=name) for name in (SECOND, THIRD))
    leave(given_up)
    for number, path in enumerate((given_up, order), 1):
        assert place.hand(host, number, path)
    work(host, story)
    assert place.phase(assignment=SECOND) == "cancelled"
    assert not place.mailbox.update(SECOND).exists()
    assert not place.mailbox.job(SECOND, 1).bound.exists()
    assert place.update(THIRD).steps == 6


def test_an_order_is_given_up_in_the_middle(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    host = place.ahead(ahead_s=5.0, linger_s=5.0)
    order = place.job(assignment=SECOND, checkpoint_s=0.0)
    files = place.mailbox.job(SECOND, 1)
    calls: list[int] = []

    def act(call: int, loss: float) -> float:
        story.time += 1.0
        calls.append(call)
        if call == 3:
            assert files.checkpoint.is_dir()
            leave(order)
        return loss

    on_step(monkeypatch, act)
    assert place.hand(host, 1, order)
    assert place.hand(host, 2, place.job(assignment=THIRD))
    work(host, story)
    assert calls == [1, 2, 3, *range(4, 10)]  # three of the first, six of the other
    assert place.phase(assignment=SECOND) == "cancelled"
    assert place.status(assignment=SECOND)["step"] == 3
    assert not place.mailbox.update(SECOND).exists()
    assert not files.checkpoint.exists()
    assert place.update(THIRD).steps == 6


def test_an_order_is_given_up_during_its_evaluation(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, order = place.ahead(ahead_s=5.0), place.job(assignment=SECOND)
    original = Softmax.evaluate

    def evaluate(self: Softmax, examples: Any) -> Any:
        leave(order)
        story.time += 1.0
        return original(self, examples)

    monkeypatch.setattr(Softmax, "evaluate", evaluate)
    assert place.hand(host, 1, order)
    work(host, story)
    assert place.phase(assignment=SECOND) == "cancelled"
    assert not place.mailbox.update(SECOND).exists()


def test_the_word_to_leave_does_not_give_up_the_hosts_own_order(
    place: Place, story: Story
) -> None:
    host = place.job()
    leave(host)
    Session(read_job(host), Stop(), story.time, clock=story.clock).run()
    assert place.update().steps == 6


# Failures ----------------------------------------------------------------------------


def refused(place: Place, assignment: str, words: str) -> None:
    status = place.status(assignment=assignment)
    assert status["phase"] == "refused"
    assert (status["error"]["code"], status["error"]["transient"]) == ("WORKER", True)
    assert words in status["error"]["message"]
    assert not place.mailbox.update(assignment).exists()


def test_after_a_failed_order_the_allocation_ends(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = place.job(linger_s=600.0)
    for number, name in enumerate((SECOND, THIRD), 1):
        assert place.hand(host, number, place.job(assignment=name))

    def act(call: int, loss: float) -> float:
        if call == 8:
            raise ValueError("a bug")
        return loss

    on_step(monkeypatch, act)
    with pytest.raises(WorkerError, match="a bug"):
        work(host, story)
    assert place.phase() == "done"  # its own order is well
    assert "a bug" in place.status(assignment=SECOND)["error"]["message"]
    refused(place, THIRD, "an order before it failed")
    assert entries(host) == [f"{SECOND}.1", f"{THIRD}.1", "closed"]
    assert story.time == 1000


def test_a_failed_order_of_its_own_ends_it_too(place: Place, story: Story) -> None:
    host = place.job(order={"work": {"batch": 0}}, linger_s=600.0)
    assert place.hand(host, 1, place.job(assignment=SECOND))
    with pytest.raises(HansaError, match="work: batch"):
        work(host, story)
    assert place.phase() == "failed"
    refused(place, SECOND, "an order before it failed")


def test_an_order_that_was_altered_is_refused(place: Place, story: Story) -> None:
    host = place.ahead(ahead_s=5.0, linger_s=5.0)
    assert place.hand(host, 1, place.job(assignment=SECOND))
    place.job(assignment=SECOND, modules=["os:system"])
    with pytest.raises(WorkerError, match="changed after it was submitted"):
        work(host, story)
    status = place.status(assignment=SECOND)
    assert (status["phase"], status["error"]["transient"]) == ("failed", False)
    assert entries(host)[-1] == "closed"


@pytest.mark.parametrize("name", ["log.txt", "checkpoint", ""])
def test_an_order_with_links_in_its_directory_is_not_begun(
    place: Place, story: Story, tmp_path: Path, name: str
) -> None:
    host, order = place.ahead(ahead_s=5.0), place.job(assignment=SECOND)
    assert place.hand(host, 1, order)
    home = place.mailbox.job(SECOND, 1).path
    if not name:
        home.rmdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (home / name).symlink_to(outside)
    with pytest.raises(PolicyError, match="symbolic link"):
        work(host, story)
    assert not list(outside.iterdir())
    if name:
        assert place.phase(assignment=SECOND) == "failed"
    assert entries(host) == [f"{SECOND}.1", "closed"]


@pytest.mark.parametrize("job", ["nonsense", "train-0001-a-1.x", "../x.1"])
def test_a_handover_of_no_job_is_refused(place: Place, story: Story, job: str) -> None:
    host = place.ahead(ahead_s=5.0)
    entry = Handover(job, place.job(), "00")
    assert handover.take(JobNotes(host.parent), 1, entry)
    with pytest.raises(HansaError):
        work(host, story)


def test_a_damaged_handover_ends_the_job(place: Place, story: Story) -> None:
    host = place.ahead(ahead_s=5.0)
    path = JobNotes(host.parent).handover(1)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(IntegrityError):
        work(host, story)


def test_a_partial_order_on_a_full_disk_is_resumed_by_a_fresh_job(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    host = place.ahead(ahead_s=5.0)
    assert place.hand(host, 1, place.job(assignment=SECOND, checkpoint_s=0.0))

    def act(call: int, loss: float) -> float:
        if call == 5:
            raise StorageFull("No space is left.")
        return loss

    with monkeypatch.context() as patch:
        on_step(patch, act)
        with pytest.raises(StorageFull):
            work(host, story)
    place.publish(4, seed=2)
    again = place.job(number=2, assignment=SECOND)
    calls: list[int] = []
    with monkeypatch.context() as patch:
        on_step(patch, lambda call, loss: calls.append(call) or loss)
        work(again, story)
    assert len(calls) == 2
    assert place.bound(2, SECOND)["base"] == place.update(SECOND).base == 0
    same_bits(place, again, SECOND)


# Walltime and signals ----------------------------------------------------------------


def test_it_leaves_while_the_next_order_would_still_fit(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes(monkeypatch, story, 20.0)
    host = place.job(linger_s=3600.0)
    work(host, story, Walltime(ends=story.time + 1000, total_s=1000))
    # 120 s of work, so 1.2 x 120 + 60 s are kept for one more order.
    assert story.time == pytest.approx(1000 + 1000 - 204, abs=1)


def test_an_order_that_does_not_fit_any_more_is_tried_elsewhere(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes(monkeypatch, story, 100.0)
    host = place.job(linger_s=3600.0)
    for number, name in enumerate((SECOND, THIRD), 1):
        assert place.hand(host, number, place.job(assignment=name))
    work(host, story, Walltime(ends=story.time + 1200, total_s=1200))
    refused(place, SECOND, "may need 780 s")
    refused(place, THIRD, "may need 780 s")
    assert entries(host)[-1] == "closed"
    assert place.phase() == "done"


def test_slow_checkpoints_are_reckoned_with_for_the_next_order(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """An order that just fits without them would be stopped before its end."""
    takes(monkeypatch, story, 20.0)
    times = iter([200.0, 100.0])

    def save(self: Saver, *_: object) -> None:
        self.longest_s = max(self.longest_s, next(times, 10.0))

    monkeypatch.setattr(Saver, "save", save)
    host = place.job(linger_s=7200.0, checkpoint_s=0.0)
    order = place.job(assignment=SECOND, checkpoint_s=3600.0)
    assert place.hand(host, 1, order)
    stop, end = Stop(now=story.clock.now), story.time + 5000
    work(host, story, Walltime(ends=end, total_s=5000), stop)
    # Three times the longest is kept of the end, in each order and behind the last.
    assert stop.deadline == end - 600
    assert story.time == pytest.approx(end - 600 - 1.2 * 120, abs=1)


def test_a_signal_ends_the_waiting(place: Place, story: Story) -> None:
    stop, host = Stop(), place.ahead(ahead_s=3600.0)
    story.at(7, lambda: stop.request(signal.SIGUSR1))
    work(host, story, stop=stop)
    assert story.time == pytest.approx(1007, abs=1)
    assert entries(host) == ["closed"]


def test_a_signal_in_an_order_returns_its_partial_work_and_refuses_the_rest(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, host = Stop(), place.job(linger_s=60.0)
    for number, name in enumerate((SECOND, THIRD), 1):
        assert place.hand(host, number, place.job(assignment=name))
    leave(place.notes(1, THIRD).job)

    def act(call: int, loss: float) -> float:
        if call == 4:
            stop.request(signal.SIGTERM)
        return loss

    on_step(monkeypatch, act)
    work(host, story, stop=stop)
    assert (place.update().partial, place.update().steps) == (True, 4)
    refused(place, SECOND, "signal SIGTERM")
    assert place.phase(assignment=THIRD) == "cancelled"


# Started again by the scheduler ------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL does, it leaves everything as it is."""


def kill() -> None:
    raise Killed


def killed_at(story: Story, seconds: float, host: Path) -> None:
    story.at(seconds, kill)
    with pytest.raises(Killed):
        work(host, story)


def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(call: int, loss: float) -> float:
        raise AssertionError("nothing is to be trained")

    on_step(monkeypatch, act)


def test_killed_while_it_lingers_it_goes_on_lingering(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = place.job(linger_s=60.0)
    assert place.hand(host, 1, place.job(assignment=SECOND))
    killed_at(story, 30, host)
    assert entries(host) == [f"{SECOND}.1"]
    assert place.phase() == "lingering"
    before = {name: place.update(name) for name in (FIRST, SECOND)}
    third = place.job(assignment=THIRD)
    story.at(50, lambda: place.hand(host, 2, third))
    calls: list[int] = []
    on_step(monkeypatch, lambda call, loss: calls.append(call) or loss)
    work(host, story)
    assert len(calls) == 6
    assert {name: place.update(name) for name in (FIRST, SECOND)} == before
    assert place.update(THIRD).steps == 6
    assert entries(host) == [f"{SECOND}.1", f"{THIRD}.1", "closed"]


def test_killed_in_a_hosted_order_it_goes_on_in_the_same_bits(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    host = place.ahead(ahead_s=600.0, linger_s=5.0)
    order = place.job(assignment=SECOND, checkpoint_s=0.0)
    assert place.hand(host, 1, order)

    def act(call: int, loss: float) -> float:
        if call == 5:
            raise Killed
        return loss

    with monkeypatch.context() as patch:
        on_step(patch, act)
        with pytest.raises(Killed):
            work(host, story)
    place.publish(4, seed=2)
    calls: list[int] = []
    with monkeypatch.context() as patch:
        on_step(patch, lambda call, loss: calls.append(call) or loss)
        work(host, story)
    assert len(calls) == 2
    same_bits(place, order, SECOND)
    assert story.time == pytest.approx(1005, abs=1)  # the first order was there


@pytest.mark.parametrize("phase", ["failed", "refused", "cancelled"])
def test_hosted_orders_that_were_over_are_not_done_again(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    no_steps(monkeypatch)
    host = place.ahead(ahead_s=5.0, linger_s=5.0)
    assert place.hand(host, 1, place.job(assignment=SECOND))
    write_json(place.mailbox.job(SECOND, 1).status, {"schema": 1, "phase": phase})
    work(host, story)
    assert place.phase(assignment=SECOND) == phase


def test_closed_it_ends_at_once(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = place.job(linger_s=60.0)
    work(host, story)
    no_steps(monkeypatch)
    then = story.time
    work(host, story)
    assert story.time == then


def test_requeued_after_its_delivery_it_only_tidies_up(
    place: Place, story: Story, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    path = place.job(checkpoint_s=0.0)
    files = place.mailbox.job(FIRST, 1)

    def killed(self: Session) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_remove_checkpoints", killed)
        with pytest.raises(Killed):
            Session(read_job(path), Stop(), 0.0).run()
    assert files.checkpoint.is_dir()
    assert place.phase() == "saving"
    before = (place.mailbox.update(FIRST) / "manifest.json").read_bytes()
    no_steps(monkeypatch)
    Session(read_job(path), Stop(), 0.0).run()
    assert (place.mailbox.update(FIRST) / "manifest.json").read_bytes() == before
    assert place.phase() == "done"
    assert not files.checkpoint.exists()


# Waiting for the word to begin -------------------------------------------------------


def begin(path: Path) -> None:
    write_json(JobNotes(path.parent).begin, {"schema": 1})


def hold(path: Path, story: Story, stop: Stop | None = None) -> None:
    Session(read_job(path), stop or Stop(), 0.0, clock=story.clock).run()


def test_it_binds_what_is_newest_when_the_word_comes(
    place: Place, story: Story
) -> None:
    path, phases = place.job(hold_s=600.0), []

    def word() -> None:
        phases.append(place.phase())
        assert not place.mailbox.job(FIRST, 1).bound.exists()
        place.publish(2, seed=2)
        begin(path)

    story.at(100, word)
    hold(path, story)
    assert phases == ["waiting"]
    assert place.update().base == 2
    assert place.update().timings["hold_s"] == pytest.approx(100, abs=1)


def test_without_a_word_it_begins_anyway(place: Place, story: Story) -> None:
    hold(place.job(hold_s=600.0), story)
    assert story.time == pytest.approx(1600, abs=1)
    assert place.update().timings["hold_s"] == pytest.approx(600, abs=1)


def test_the_word_may_be_there_before(place: Place, story: Story) -> None:
    path = place.job(hold_s=600.0)
    begin(path)
    hold(path, story)
    assert story.time == 1000


def test_a_requeued_job_that_had_begun_does_not_wait_again(
    place: Place, story: Story
) -> None:
    path = place.job(hold_s=600.0)
    bound = {"schema": 1, "base": 0, "at": 1.0}
    write_json(place.mailbox.job(FIRST, 1).bound, bound)
    hold(path, story)
    assert story.time == 1000


def test_a_signal_while_it_waits_is_a_transient_failure(
    place: Place, story: Story
) -> None:
    stop, path = Stop(), place.job(hold_s=600.0)
    story.at(5, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(WorkerError, match="waited for the others: signal") as info:
        hold(path, story, stop)
    assert info.value.transient
    assert not place.mailbox.job(FIRST, 1).bound.exists()


def test_a_hosted_order_is_given_up_while_it_waits(place: Place, story: Story) -> None:
    host, order = place.ahead(ahead_s=5.0), place.job(assignment=SECOND, hold_s=600.0)
    assert place.hand(host, 1, order)
    story.at(30, lambda: leave(order))
    work(host, story)
    assert place.phase(assignment=SECOND) == "cancelled"
    assert story.time == pytest.approx(1030, abs=1)


def test_an_order_that_comes_soon_is_soon_seen(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, story = place.job(linger_s=60.0), Story()
    looks: list[float] = []

    def there(path: Path) -> bool:
        if path.parent.name == "handover":
            looks.append(story.time - 1000.0)
        return False

    monkeypatch.setattr(allocation, "there", there)
    work(host, story)
    waits = [later - one for one, later in itertools.pairwise(looks)]
    assert waits[0] == pytest.approx(0.02)
    # Never later than by a tenth of the time waited, or by the longest pause.
    longest = read_any(host).pause_s
    for look, wait in zip(looks[1:], waits, strict=True):
        assert wait <= min(longest, 0.1 * look + 0.02) + 1e-9
    assert waits[-1] == pytest.approx(longest)
