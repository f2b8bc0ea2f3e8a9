"""The queue with real processes. Deadlines are long, waits are by condition."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hansa.core.errors import SchedulerError
from hansa.scheduler import local_queue
from hansa.scheduler.base import JobState
from hansa.scheduler.local_daemon import Daemon

pytestmark = pytest.mark.integration


def gone(pid: int) -> bool:
    """Whether a process is over (a zombie that nobody waits for counts)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return fields[0] == "Z"


def daemons(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and not gone(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"--lock-fd" in words and os.fsencode(directory) in words:
                found.append(int(entry.name))
    return found


def hold(path: Path) -> str:
    return f"while [ ! -e '{path}' ]; do sleep 0.02; done"


def test_a_job_runs_and_its_end_is_noted(queue):
    before = time.time()
    job = queue.submit("a", "echo $GREETING; pwd", variables={"GREETING": "moin"})
    done = queue.ended(job)
    assert (done.name, done.state, done.exit_code) == ("a", JobState.DONE, 0)
    assert before <= done.submitted <= done.started <= done.ended <= time.time()
    assert queue.log("a") == f"moin\n{queue.root}\n"


def test_exit_codes_and_signals(queue):
    queue.use(slots=2)
    code = queue.submit("code", "exit 7")
    kill = queue.submit("kill", "kill -9 $$")
    assert queue.ended(code).exit_code == 7
    assert queue.job(code).state is JobState.FAILED
    assert queue.ended(kill).exit_code == -9
    assert queue.job(kill).reason == "killed by signal 9"


def test_a_job_in_a_missing_directory_fails(queue):
    job = queue.submit("a", "true")
    queue.ended(job)
    script = queue.root / "b.sh"
    script.write_text("#!/bin/sh\n#HANSA name=b\n#HANSA nodes=1\n#HANSA time=9\n"
                      "#HANSA directory=/no/where\ntrue\n")  # fmt: skip
    lost = queue.ended(queue.enqueue(script))
    assert (lost.state, lost.exit_code) == (JobState.FAILED, 126)


def test_strict_fifo_and_slots(queue):
    queue.use(slots=2)
    gate = queue.root / "gate"
    first = queue.submit("first", hold(gate))
    wide = queue.submit("wide", "true", nodes=2)
    last = queue.submit("last", "true")
    queue.until(lambda: queue.job(first).state is JobState.RUNNING)
    assert queue.job(wide).state is JobState.QUEUED
    assert queue.job(last).state is JobState.QUEUED
    gate.touch()
    queue.ended(last)
    jobs = queue.status()
    assert jobs[first].ended <= jobs[wide].started
    assert jobs[wide].ended <= jobs[last].started


def test_slots_are_used_side_by_side(queue):
    queue.use(slots=2)
    here, there = queue.root / "here", queue.root / "there"
    one = queue.submit("one", f"touch '{here}'; {hold(there)}")
    two = queue.submit("two", f"touch '{there}'; {hold(here)}")
    assert queue.ended(one).state is queue.ended(two).state is JobState.DONE


def test_warning_then_term_at_walltime(queue):
    job = queue.submit(
        "a",
        "trap 'echo warned' USR1; trap 'echo term; exit 0' TERM;"
        "while :; do sleep 0.02; done",
        time_s=8.4,
        warning_s=3.2,
    )
    done = queue.ended(job)
    assert (done.state, done.exit_code) == (JobState.TIMEOUT, 0)
    assert done.reason == "walltime of 8.4 s is over"
    assert 8.4 <= done.ended - done.started < 30
    said = [line for line in queue.log("a").splitlines() if line in ("warned", "term")]
    assert said == ["warned", "term"]


def test_a_job_may_leave_well_on_the_warning(queue):
    job = queue.submit(
        "a",
        "trap 'echo saved; exit 0' USR1; while :; do sleep 0.02; done",
        time_s=30,
        warning_s=25,
    )
    assert queue.ended(job).state is JobState.DONE
    assert "saved" in queue.log("a")


def test_kill_after_the_grace(queue):
    job = queue.submit("a", "trap '' TERM; while :; do sleep 0.02; done", time_s=4)
    done = queue.ended(job)
    assert (done.state, done.exit_code) == (JobState.TIMEOUT, -9)
    assert 8.9 <= done.ended - done.started < 30


def test_what_a_job_leaves_behind_is_ended(queue):
    job = queue.submit("a", "sleep 300 & echo $!")
    assert queue.ended(job).state is JobState.DONE
    child = int(queue.log("a"))
    queue.until(lambda: gone(child))


def test_cancel_a_waiting_and_a_running_job(queue):
    running = queue.submit("running", "sleep 300")
    waiting = queue.submit("waiting", "true")
    queue.until(lambda: queue.job(running).state is JobState.RUNNING)
    queue.cancel(waiting, running, "999")
    assert queue.job(waiting).state is JobState.CANCELLED
    assert queue.job(waiting).started is None
    done = queue.ended(running)
    assert (done.state, done.exit_code) == (JobState.CANCELLED, -15)
    before = queue.status()
    queue.cancel(waiting, running)
    assert queue.status() == before


def test_a_killed_daemon_is_revived_and_adopts_its_jobs(queue):
    queue.use(slots=2)
    gate = queue.root / "gate"
    short = queue.submit("short", f"{hold(gate)}; exit 3")
    long = queue.submit("long", "echo up; sleep 300")
    queue.until(lambda: queue.job(long).state is JobState.RUNNING)
    queue.until(lambda: "up" in queue.log("long"))
    started = queue.job(long).started
    old = queue.daemon()
    os.kill(old, signal.SIGKILL)
    queue.until(lambda: gone(old))
    gate.touch()  # it ends while nobody looks
    queue.until((queue.dir / f"{short}.exit").exists)
    ended_by = time.time()
    waiting = queue.submit("waiting", "true")  # a submission revives it
    done = queue.ended(short)
    assert (done.state, done.exit_code) == (JobState.FAILED, 3)
    assert done.ended <= ended_by
    assert queue.daemon() != old
    assert queue.ended(waiting).state is JobState.DONE
    assert queue.job(long).state is JobState.RUNNING
    assert queue.job(long).started == started
    queue.cancel(long)
    assert queue.ended(long).exit_code == -15


def test_a_look_at_the_queue_revives_a_killed_daemon(queue):
    gate = queue.root / "gate"
    running = queue.submit("running", hold(gate))
    waiting = queue.submit("waiting", "true")
    queue.until(lambda: queue.job(running).state is JobState.RUNNING)
    old = queue.daemon()
    os.kill(old, signal.SIGKILL)
    queue.until(lambda: gone(old))
    gate.touch()
    assert queue.ended(waiting).state is JobState.DONE  # by status commands alone
    queue.until(lambda: len(daemons(queue.dir)) == 1)  # a job's keeper may still go


def test_a_killed_keeper_is_a_failed_node(queue):
    job = queue.submit("a", "echo $$; sleep 300")
    shell = int(queue.until(lambda: queue.log("a")))
    status = Path(f"/proc/{shell}/status").read_text()
    keeper = int(status.partition("PPid:")[2].split()[0])
    os.kill(keeper, signal.SIGKILL)
    assert queue.ended(job).state is JobState.NODE_FAIL
    queue.until(lambda: gone(shell))


@pytest.fixture
def stranger():
    """A process with a group of its own, which no job started."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def noted_job(store: local_queue.Store, note: str) -> local_queue.Job:
    """Return a job that runs, by the files, but whose keeper is dead."""
    running = ended_job("1", 0.0) | {"state": "RUNNING", "ended": None}
    running |= {"started": time.time(), "time_s": 300.0, "exit_code": None}
    store.directory.mkdir()
    with store.change() as state:
        state["jobs"].append(running)
    store.run_file(running).write_text(note)
    return running


def identity(pid: int) -> list[str]:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [str(pid), words[19], Path("/proc/sys/kernel/random/boot_id").read_text()]


@pytest.mark.parametrize("field", ["all", "start", "boot"])
def test_a_process_that_has_a_jobs_old_number_gets_no_signal(queue, stranger, field):
    pid, start, boot = identity(stranger.pid)
    note = {
        "all": pid,
        "start": f"{pid} {int(start) - 1} {boot.strip()}",
        "boot": f"{pid} {start} 00000000-another-boot",
    }[field]
    noted_job(local_queue.Store(queue.dir), note)
    queue.run(queue.driver._queue.ask("list"))  # starts a daemon
    assert queue.ended("1").state is JobState.NODE_FAIL
    assert not gone(stranger.pid)


@pytest.mark.parametrize("error", [PermissionError, ProcessLookupError])
def test_a_group_that_takes_no_signals_does_not_stop_the_daemon(
    tmp_path, stranger, monkeypatch, error
):
    store = local_queue.Store(tmp_path / "queue")
    noted_job(store, " ".join(identity(stranger.pid)).strip())
    sent = []

    def refuse(group, number):
        sent.append((group, number))
        raise error

    monkeypatch.setattr(os, "killpg", refuse)
    Daemon(store, idle_s=0.0).run(store.lock_daemon())
    assert sent == [(stranger.pid, signal.SIGKILL)]
    assert store.load()["jobs"][0]["state"] == "NODE_FAIL"


def test_sites_that_disagree_on_the_slots_block_nobody(queue):
    queue.use(slots=2)
    gate = queue.root / "gate"
    first = queue.submit("first", hold(gate))
    wide = queue.submit("wide", "true", nodes=2)
    queue.use(slots=1)  # another site, the same queue
    narrow = queue.submit("narrow", "true")
    gate.touch()
    assert queue.ended(first).state is JobState.DONE
    assert queue.ended(wide).state is JobState.DONE
    assert queue.ended(narrow).state is JobState.DONE
    queue.submit("later", "true")
    assert json.loads((queue.dir / "state.json").read_text())["slots"] == 1


def test_racing_submissions_make_one_daemon_and_distinct_ids(queue):
    queue.use(slots=4)
    commands = []
    for number in range(8):
        script = queue.root / f"{number}.sh"
        script.write_text(queue.driver.render(queue.spec(f"job{number}", "true")))
        commands.append(list(next(queue.driver.submit(script))))
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    ids = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(ids) == [str(number) for number in range(1, 9)]
    assert all(queue.ended(job).state is JobState.DONE for job in ids)
    queue.until(lambda: len(daemons(queue.dir)) == 1)  # a job's keeper may still go
    names = {job: queue.job(job).name for job in ids}
    assert names == {job: f"job{number}" for number, job in enumerate(ids)}


def test_synthetic_waits(queue):
    queue.use(slots=2, wait={"mean": 0.5, "sigma": 0})
    done = queue.ended(queue.submit("soon", "true"))
    assert done.started - done.submitted >= 0.5
    queue.use(slots=2, wait={"mean": 600, "sigma": 0})
    late = queue.submit("late", "true", nodes=2)
    queue.use(slots=2)
    free = queue.submit("free", "true")
    assert queue.ended(free).state is JobState.DONE  # "late" is not in line yet
    assert queue.job(late).state is JobState.QUEUED


def test_an_idle_daemon_leaves_and_comes_back(queue):
    gate = queue.root / "gate"
    first = queue.submit("first", hold(gate), idle=0.3)
    old = queue.until(queue.daemon)
    gate.touch()
    queue.ended(first)
    queue.until(lambda: gone(old))
    queue.until(lambda: queue.daemon() is None)
    assert queue.job(first).state is JobState.DONE
    assert daemons(queue.dir) == []  # looking does not start one for nothing
    second = queue.submit("second", "true")
    assert queue.ended(second).state is JobState.DONE


def test_a_dead_daemons_pid_file_is_swept_when_nothing_waits(queue):
    job = queue.submit("a", "true")
    queue.ended(job)
    os.kill(queue.daemon(), signal.SIGKILL)
    queue.until(lambda: queue.status() and queue.daemon() is None)
    assert daemons(queue.dir) == []


def test_refusals(queue):
    script = queue.root / "bad.sh"
    script.write_text("#!/bin/sh\n#HANSA name=x\n")
    with pytest.raises(SchedulerError, match="line is missing or wrong: 'nodes'"):
        queue.enqueue(script)
    script.write_text("#!/bin/sh\n#HANSA name=x\n#HANSA nodes=5\n#HANSA time=9\n")
    with pytest.raises(SchedulerError, match="x asks for 5 slots of 1"):
        queue.enqueue(script)
    (queue.dir / "state.json").write_text("{")
    with pytest.raises(SchedulerError, match="is damaged"):
        queue.enqueue(script)
    (queue.dir / "state.json").unlink()


def test_the_module_runs_by_its_name(queue):
    command = [sys.executable, "-m", "hansa.scheduler.local_queue"]
    assert queue.run([*command, "list", "--dir", str(queue.dir)]).stdout == ""
    job = queue.submit("a", "true")
    queue.ended(job)
    listed = queue.run([*command, "list", "--dir", str(queue.dir)]).stdout
    assert json.loads(listed)["jobs"][0]["name"] == "a"


def test_old_jobs_are_forgotten(tmp_path):
    store = local_queue.Store(tmp_path)
    ages = {"1": local_queue.KEEP_S + 60, "2": 60.0}
    with store.change() as state:
        for job, age in ages.items():
            (tmp_path / f"{job}.exit").touch()
            state["jobs"].append(ended_job(job, time.time() - age))
        local_queue.forget(store, state)
    assert [job["id"] for job in store.load()["jobs"]] == ["2"]
    assert sorted(entry.name for entry in tmp_path.glob("*.exit")) == ["2.exit"]


def ended_job(number: str, ended: float) -> local_queue.Job:
    return {
        "id": number, "name": number, "state": "DONE", "submitted": 0.0,
        "eligible": 0.0, "started": 0.0, "ended": ended, "nodes": 1, "time_s": 1.0,
        "warning_s": 0.0, "exit_code": 0, "reason": "", "script": "", "directory": "",
        "log": "", "warned": False, "ending": "", "kill_at": None,
    }  # fmt: skip


def test_every_job_runs_once_however_often_the_daemon_is_killed(queue):
    queue.use(slots=2)
    draw = random.Random(11)  # noqa: S311 - not for secrets
    seen = queue.root / "seen"
    ids = []
    for number in range(12):
        ids.append(queue.submit(f"job{number}", f"echo {number} >> '{seen}'"))
        time.sleep(draw.uniform(0, 0.06))  # another moment of its work each time
        with suppress(ProcessLookupError, TypeError):
            os.kill(queue.daemon(), signal.SIGKILL)
    ends = [queue.ended(job) for job in ids]
    assert {end.state for end in ends} == {JobState.DONE}
    ran = sorted(int(line) for line in seen.read_text().split())
    assert ran == list(range(12))
    queue.until(lambda: len(daemons(queue.dir)) == 1)  # a job's keeper may still go
