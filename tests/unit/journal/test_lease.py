from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hansa.core.errors import JournalLocked
from hansa.core.events import RunResumed
from hansa.journal import Holder, Journal, Lease, holder, lease

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.lease"


def write(path: Path, content: Holder) -> None:
    file = path.with_name(f"{path.name}.{content.token}")
    file.write_text(json.dumps(asdict(content)))


def other(token: int = 1, **changes: object) -> Holder:
    fields = {
        "host": "elsewhere",
        "pid": 4711,
        "started": 99,
        "heartbeat": NOW,
        "token": token,
        "nonce": f"nonce-{token}",
        "command": "hansa run fed.yaml",
        **changes,
    }
    return Holder(**fields)  # type: ignore[arg-type]


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_a_lease_names_its_holder_and_goes_away(path: Path) -> None:
    assert holder(path) is None
    with Lease.acquire(path, NOW) as held:
        found = holder(path)
        assert found == held.holder
        assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
        assert (found.token, found.heartbeat) == (1, NOW)
        assert found.is_alive(NOW)
        assert names(path) == ["journal.lease.1"]
    assert holder(path) is None
    assert names(path) == []


def test_there_is_no_holder_where_there_is_no_run(tmp_path: Path) -> None:
    assert holder(tmp_path / "nowhere" / "journal.lease") is None


def test_a_second_writer_is_refused_by_name(path: Path) -> None:
    with Lease.acquire(path, NOW), pytest.raises(JournalLocked) as caught:
        Lease.acquire(path, NOW + 7)
    assert f"process {os.getpid()} on {socket.gethostname()}" in caught.value.message
    assert "7 s ago" in caught.value.message
    assert caught.value.exit_code == 75


def test_silence_does_not_end_a_living_process_here(path: Path) -> None:
    with Lease.acquire(path, NOW), pytest.raises(JournalLocked):
        Lease.acquire(path, NOW + 1e6)


@pytest.mark.parametrize(("age", "free"), [(0, False), (120, False), (121, True)])
def test_another_host_counts_as_dead_after_silence(
    path: Path, age: float, free: bool
) -> None:
    write(path, other(5))
    if not free:
        with pytest.raises(JournalLocked, match="process 4711 on elsewhere"):
            Lease.acquire(path, NOW + age)
        return
    with Lease.acquire(path, NOW + age) as held:
        assert held.holder.token == 6
        assert names(path) == ["journal.lease.6"]


def test_a_dead_process_here_is_noticed_at_once(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        started = lease._process_start(child.pid)
        assert started is not None
        host = socket.gethostname()
        write(path, other(host=host, pid=child.pid, started=started))
        with pytest.raises(JournalLocked, match=f"process {child.pid}"):
            Lease.acquire(path, NOW + 1000)
        child.kill()
        # Dead but not yet collected by its parent: a zombie.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        Lease.acquire(path, NOW).release()
    write(path, other(host=host, pid=child.pid, started=started))
    Lease.acquire(path, NOW).release()


def test_a_reused_pid_is_noticed(path: Path) -> None:
    host = socket.gethostname()
    write(path, other(host=host, pid=os.getpid(), started=1))
    with Lease.acquire(path, NOW) as held:
        assert held.holder.token == 2


def test_without_a_start_time_the_heartbeat_counts(path: Path) -> None:
    write(path, other(host=socket.gethostname(), started=0))
    with pytest.raises(JournalLocked):
        Lease.acquire(path, NOW)
    Lease.acquire(path, NOW + 121).release()


def test_a_damaged_lease_counts_by_its_age(path: Path) -> None:
    file = path.with_name("journal.lease.3")
    file.write_bytes(b"\0\0")
    os.utime(file, (NOW, NOW))
    with pytest.raises(JournalLocked, match="unknown host"):
        Lease.acquire(path, NOW + 119)
    with Lease.acquire(path, NOW + 121) as held:
        assert held.holder.token == 4


def test_a_beat_renews_the_heartbeat(path: Path) -> None:
    with Lease.acquire(path, NOW) as held:
        held.beat(NOW + 50)
        found = holder(path)
        assert found is not None
        assert found.heartbeat == NOW + 50
        held.ensure(NOW + 55)
        assert holder(path) == found
        held.ensure(NOW + 75)
        assert holder(path) == replace(found, heartbeat=NOW + 75)
        assert names(path) == ["journal.lease.1"]


def test_the_clock_is_read_when_no_time_is_given(path: Path) -> None:
    with Lease.acquire(path) as held:
        before = held.holder.heartbeat
        assert before > NOW
        held.beat()
        assert held.holder.heartbeat >= before
        held.ensure()


def test_a_holder_that_seemed_dead_finds_itself_replaced(path: Path) -> None:
    held = Lease.acquire(path, NOW)
    write(path, other(2))
    with pytest.raises(JournalLocked, match="taken over by elsewhere pid 4711") as err:
        held.beat(NOW + 300)
    assert not err.value.transient
    held.release()  # Leaves the new holder's lease alone.
    assert holder(path) == other(2)


def test_a_vanished_lease_is_lost_too(path: Path) -> None:
    held = Lease.acquire(path, NOW)
    path.with_name("journal.lease.1").unlink()
    with pytest.raises(JournalLocked, match="someone"):
        held.beat(NOW + 300)
    held.release()


def test_a_journal_notices_that_its_lease_is_gone(path: Path) -> None:
    held = Lease.acquire(path, NOW)  # Long ago, so that every append beats.
    with Journal.open(path.with_name("journal.jsonl"), held) as journal:
        journal.append(RunResumed(at=0.0), "")
        write(path, other(2))
        held._holder = replace(held.holder, heartbeat=NOW)
        with pytest.raises(JournalLocked, match="taken over"):
            journal.append(RunResumed(at=1.0), "")
    assert len(path.with_name("journal.jsonl").read_text().splitlines()) == 1


def test_a_lease_released_between_listing_and_reading(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lease.acquire(path, NOW)
    real = lease._read

    def late(where: Path, token: int) -> Holder:
        held_file = path.with_name("journal.lease.1")
        if held_file.exists():
            held_file.unlink()
        return real(where, token)

    monkeypatch.setattr(lease, "_read", late)
    assert holder(path) is None


def test_the_slower_of_two_contenders_loses(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, other(1, heartbeat=0.0))
    real = lease._create

    def overtaken(where: Path, mine: Holder) -> bool:
        write(where, other(2))  # Another process was a moment faster.
        return real(where, mine)

    monkeypatch.setattr(lease, "_create", overtaken)
    with pytest.raises(JournalLocked, match="elsewhere"):
        Lease.acquire(path, NOW)
    assert not [name for name in names(path) if name.startswith(".")]


def test_a_contender_from_the_past_withdraws(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between its look (1 is dead) and its link (2), others held 2 and now hold 3.
    write(path, other(1, heartbeat=0.0))
    real = lease._create

    def late(where: Path, mine: Holder) -> bool:
        path.with_name("journal.lease.1").unlink()
        write(where, other(3))
        return real(where, mine)

    monkeypatch.setattr(lease, "_create", late)
    with pytest.raises(JournalLocked, match="elsewhere"):
        Lease.acquire(path, NOW)
    assert names(path) == ["journal.lease.3"]


def test_a_lost_answer_of_the_file_server_is_not_a_lost_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", repeated)
    with Lease.acquire(path, NOW) as held:
        assert holder(path) == held.holder


CONTENDER = """
import sys
from pathlib import Path
from hansa.core.errors import JournalLocked
from hansa.journal import Lease
print("ready", flush=True)
sys.stdin.readline()
try:
    held = Lease.acquire(Path(sys.argv[1]))
except JournalLocked:
    print("locked", flush=True)
else:
    print("held", held.holder.token, flush=True)
    sys.stdin.readline()
    held.release()
"""


@pytest.fixture
def contenders(path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.integration
def test_of_many_processes_one_takes_over_a_dead_lease(
    path: Path, contenders: list[subprocess.Popen[str]]
) -> None:
    write(path, other(8, heartbeat=0.0))
    for process in contenders:
        assert hear(process) == "ready"
    for process in contenders:
        say(process)
    answers = sorted(hear(process) for process in contenders)
    assert answers == ["held 9", "locked", "locked", "locked"]
    found = holder(path)
    assert found is not None
    assert found.pid in [process.pid for process in contenders]
    assert names(path) == ["journal.lease.9"]
