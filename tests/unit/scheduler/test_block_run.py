"""The runner of one job, with real processes; waits are by condition."""

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from block_worker import worker_in

from hansa.scheduler.base import JobSpec
from hansa.scheduler.block import BlockOptions, BlockScheduler
from hansa.scheduler.block_queue import Asked, Store, once
from hansa.scheduler.block_run import END_S, Limits, work

QUICK = Limits(look_s=0.02, grace_s=0.3, stale_s=2.0)


def asked(**fields):
    usual = {"name": "x", "nodes": 1, "time_s": 300.0, "warning_s": 60.0}
    return Asked(**{**usual, "directory": "/", "log": "/l", "submitted": 0.0, **fields})


@pytest.mark.parametrize(
    ("ends", "gets"),
    [
        (None, 300.0),
        (5000.0, 300.0),
        (1000.0 + END_S + 300, 300.0),
        (1000.0 + END_S + 250, 250.0),
        (1000.0 + END_S + 179, None),
        (900.0, None),
    ],
)
def test_a_job_gets_no_more_time_than_the_block_has(ends, gets):
    assert Limits(block_ends=ends).walltime(asked(), 1000.0) == gets


def test_a_job_without_a_warning_wants_half_of_its_time():
    limits = Limits(block_ends=1000.0 + END_S + 150)
    assert limits.walltime(asked(warning_s=0.0), 1000.0) == 150
    assert limits.walltime(asked(warning_s=0.0, time_s=301.0), 1000.0) is None


class Queue:
    def __init__(self, root):
        self.root, self.store = root, Store(root / "block")
        self.driver = BlockScheduler(BlockOptions(nodes=2), root)

    def submit(self, shell, **fields):
        spec = JobSpec(
            name="hansa.r.a.1",
            nodes=1,
            command=["/bin/sh", "-c", shell],
            **{
                "time_s": 60.0,
                "directory": self.root,
                "log": self.root / "log.txt",
                "warning_s": 0.0,
                **fields,
            },
        )
        script = self.root / "script.sh"
        script.write_text(self.driver.render(spec))
        return self.store.entry(self.store.submit(script))

    def run(self, entry, limits=QUICK):
        assert work(entry, limits)
        return self.store.record(entry.id)

    def later(self, entry, limits=QUICK):
        """Run a job on a thread, as in a process that signals do not reach."""
        thread = threading.Thread(target=work, args=(entry, limits))
        thread.start()
        return thread

    @property
    def log(self):
        path = self.root / "log.txt"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path)


def until(condition, seconds=100.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)
    return value


def gone(pid):
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return words[0] == "Z"


live = pytest.mark.integration


@live
def test_a_job_is_run_in_its_own_place(queue, monkeypatch):
    monkeypatch.setenv("PARSL_MPI_NODELIST", "n1,n2")
    entry = queue.submit("echo $HANSA_JOB_ID $PARSL_MPI_NODELIST; pwd")
    record = queue.run(entry)
    assert (record["state"], record["exit_code"], record["reason"]) == ("DONE", 0, "")
    assert record["submitted"] <= record["started"] <= record["ended"]
    assert queue.log == f"{entry.id} n1,n2\n{queue.root}\n"


@live
def test_a_job_is_run_once(queue):
    entry = queue.submit("echo once")
    queue.run(entry)
    assert not work(entry, QUICK)
    assert queue.log == "once\n"


@live
def test_a_job_that_was_cancelled_before_is_not_run(queue):
    entry = queue.submit("echo never")
    queue.store.cancel([entry.id])
    assert not work(entry, QUICK)
    assert queue.log == ""


@live
def test_a_job_waits_on_if_the_block_is_nearly_over(queue):
    entry = queue.submit("echo never")
    assert not work(entry, Limits(block_ends=time.time() + END_S + 5))
    assert queue.store.record(entry.id)["state"] == "QUEUED"


@live
@pytest.mark.parametrize(
    ("shell", "code", "reason"),
    [
        ("exit 7", 7, "exit code 7"),
        ("kill -9 $$", -9, "killed by signal 9"),
    ],
)
def test_a_job_that_fails_says_how(queue, shell, code, reason):
    record = queue.run(queue.submit(shell))
    assert (record["state"], record["exit_code"]) == ("FAILED", code)
    assert record["reason"] == reason


@live
def test_a_job_that_can_not_start_has_failed(queue):
    record = queue.run(queue.submit("true", directory=queue.root / "nowhere"))
    assert record["state"] == "FAILED"
    assert "can't be started" in record["reason"]


@live
def test_what_a_job_leaves_running_is_ended(queue):
    record = queue.run(queue.submit("sleep 300 & echo $!"))
    assert record["state"] == "DONE"
    until(lambda: gone(int(queue.log)))


DEAF = """\
trap 'echo usr1' USR1; trap 'echo term' TERM
end=$(($(date +%s) + 30)); while [ $(date +%s) -lt $end ]; do sleep 0.05; done
"""


@live
def test_walltime_warns_then_asks_then_kills(queue):
    entry = queue.submit(DEAF, time_s=4.0, warning_s=1.0)
    record = queue.run(entry, replace(QUICK, grace_s=3.0))
    assert (record["state"], record["exit_code"]) == ("TIMEOUT", -9)
    assert record["reason"] == "walltime of 4 s is over"
    assert queue.log.split() == ["usr1", "term"]
    assert record["ended"] - record["started"] >= 4


@live
def test_a_job_that_runs_is_cancelled_in_its_place(queue):
    entry = queue.submit("echo up; exec sleep 300")
    thread = queue.later(entry)
    until(lambda: queue.log)
    queue.store.cancel([entry.id])
    thread.join(20)
    record = queue.store.record(entry.id)
    assert (record["state"], record["exit_code"]) == ("CANCELLED", -15)


@live
def test_a_job_that_was_taken_for_lost_is_ended(queue):
    entry = queue.submit("echo up; exec sleep 300")
    thread = queue.later(entry)
    until(lambda: queue.log)
    lost = {"state": "NODE_FAIL", "ended": 1.0, "exit_code": None, "reason": "gone"}
    assert once(entry.end, lost)
    thread.join(20)
    assert not thread.is_alive()
    assert queue.store.record(entry.id)["reason"] == "gone"


@live
def test_a_runner_beats_as_long_as_the_job_runs(queue):
    entry = queue.submit(f"while [ ! -e '{queue.root}/go' ]; do sleep 0.02; done")
    thread = queue.later(entry)
    first = until(entry.beaten)
    until(lambda: entry.beaten() > first + 2 * QUICK.stale_s / 20)
    assert queue.store.record(entry.id, QUICK.stale_s)["state"] == "RUNNING"
    (queue.root / "go").touch()
    thread.join(20)
    assert queue.store.record(entry.id)["state"] == "DONE"


@live
def test_a_block_that_ends_lets_the_job_save_its_state(queue):
    entry = queue.submit("trap 'echo saved; exit 0' TERM; echo up; sleep 300 & wait")
    with worker_in(queue.store.directory) as worker:
        until(lambda: queue.log)
        worker.send_signal(signal.SIGTERM)
        until(entry.end.exists)
    record = queue.store.record(entry.id)
    assert (record["state"], record["reason"]) == ("NODE_FAIL", "its block was ended")
    assert queue.log == "up\nsaved\n"


@live
def test_a_job_dies_with_its_runner_and_is_then_seen_to_be_lost(queue):
    entry = queue.submit("echo $$; exec sleep 300")
    with worker_in(queue.store.directory) as worker:
        until(lambda: queue.log)
        worker.kill()
        until(lambda: gone(int(queue.log)))
    record = until(lambda: _final(queue.store.record(entry.id, 0.5)))
    assert record["state"] == "NODE_FAIL"


def _final(record):
    return record if record["state"] != "RUNNING" else None


@live
def test_signals_are_as_before_when_the_job_is_over(queue):
    before = signal.getsignal(signal.SIGTERM)
    queue.run(queue.submit("true"))
    assert signal.getsignal(signal.SIGTERM) is before
