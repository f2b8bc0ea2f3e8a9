"""Ranks check in, and a launch that is not as ordered ends before the training."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from worker_place import FIRST, Place, Story

from hansa.core.errors import SpecError, WorkerError
from hansa.worker import ranks
from hansa.worker.__main__ import main
from hansa.worker.launch import Rank
from hansa.worker.ranks import Launch, arrived, check_in, gather
from hansa.worker.signals import Stop


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path, "17-1", nodes=2, ranks=4, sha256="ab")


def alter(launch: Launch, of: int, **fields: Any) -> None:
    path = launch.directory / f"{of}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def all_in(launch: Launch, world: int | None = 4) -> None:
    for rank in range(4):
        check_in(launch, Rank("srun", rank, world))
        alter(launch, rank, host=f"n{rank // 2}")


def test_all_are_there(launch: Launch, caplog: pytest.LogCaptureFixture) -> None:
    all_in(launch)
    present = gather(launch, Stop(), Story().clock)
    assert [(one.rank, one.host) for one in present] == [
        *((0, "n0"), (1, "n0"), (2, "n1"), (3, "n1"))
    ]
    assert not caplog.records


def test_the_first_waits_for_the_last(launch: Launch) -> None:
    story = Story()
    for rank in (0, 2, 3):
        check_in(launch, Rank("PALS", rank, 4))
    story.at(120, lambda: (launch.directory / "1.json").write_text('{"schema": '))
    story.at(121, (launch.directory / "1.json").unlink)
    story.at(122, lambda: check_in(launch, Rank("PALS", 1, 4)))
    assert len(gather(launch, Stop(), story.clock)) == 4
    assert story.time == pytest.approx(1122, abs=ranks.LOOK_S)


def test_missing_ranks_are_named_after_five_minutes(launch: Launch) -> None:
    check_in(launch, Rank("PALS", 0, 4))
    check_in(launch, Rank("PALS", 2, 4))
    story = Story()
    with pytest.raises(WorkerError, match="2 have come; missing are 1, 3") as info:
        gather(launch, Stop(), story.clock)
    assert info.value.transient
    assert story.time == pytest.approx(1300, abs=1)


def test_a_signal_ends_the_waiting(launch: Launch) -> None:
    check_in(launch, Rank("PALS", 0, 4))
    stop, story = Stop(), Story()
    story.at(3, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(WorkerError, match="SIGTERM"):
        gather(launch, stop, story.clock)
    assert story.time < 1004


def test_a_rank_that_was_seen_is_not_read_again(launch: Launch) -> None:
    check_in(launch, Rank("srun", 0, 4))
    seen = arrived(launch)
    (launch.directory / "0.json").write_text("")
    check_in(launch, Rank("srun", 1, 4))
    assert sorted(arrived(launch)) == [1]
    assert sorted(arrived(launch, seen)) == [0, 1]


def test_two_of_one_rank(launch: Launch) -> None:
    check_in(launch, Rank("srun", 0, 4))
    with pytest.raises(WorkerError, match=r"Two processes .* rank 0"):
        check_in(launch, Rank("srun", 0, 4))
    with pytest.raises(WorkerError, match=r"Two processes .* rank 0"):
        gather(launch, Stop(), Story().clock)


def test_ranks_of_an_earlier_start_do_not_count(launch: Launch) -> None:
    all_in(launch)
    again = Launch(launch.job_dir, "18-1", nodes=2, ranks=4, sha256="ab")
    check_in(again, Rank("srun", 0, 4))
    with pytest.raises(WorkerError, match="1 have come"):
        gather(again, Stop(), Story().clock)


@pytest.mark.parametrize("world", [1, 2, 8])
def test_another_number_of_processes_is_seen_at_once(
    launch: Launch, world: int
) -> None:
    with pytest.raises(WorkerError, match=f"srun says that it started {world}") as info:
        check_in(launch, Rank("srun", 0, world))
    assert "environment.launch" in str(info.value.hint)
    assert not info.value.transient


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sha256": "cd"}, "Rank 2 on n1 was started for another job.json"),
        ({"world": 3}, "says that it started 3 processes"),
        ({"rank": 7}, "The ranks of the launch are 0, 1, 3, 7; 0 to 3"),
    ],
)
def test_ranks_that_do_not_fit(
    launch: Launch, fields: dict[str, Any], words: str
) -> None:
    all_in(launch)
    alter(launch, 2, **fields)
    with pytest.raises(WorkerError, match=words):
        gather(launch, Stop(), Story().clock)


def test_other_hosts_than_nodes_are_only_said(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    for rank in range(4):
        check_in(launch, Rank("PMIx", rank))
    assert len(gather(launch, Stop(), Story().clock)) == 4
    assert "4 ranks on 1 hosts" in caplog.text


def test_slurm_names_its_nodes(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for rank in range(4):
        monkeypatch.setenv("SLURMD_NODENAME", f"n{rank // 2}")
        check_in(launch, Rank("srun", rank, 4))
    present = gather(launch, Stop(), Story().clock)
    assert [one.host for one in present] == ["n0", "n0", "n1", "n1"]
    assert not caplog.records


@pytest.mark.parametrize("attempt", ["", "..", "a/b", "-x", "a" * 65])
def test_the_attempt_is_a_name(tmp_path: Path, attempt: str) -> None:
    with pytest.raises(SpecError, match="--attempt"):
        check_in(Launch(tmp_path, attempt, 1, 1, ""), Rank("srun", 0, 1))


# Through the command line ------------------------------------------------------

Envs = pytest.MonkeyPatch


def be(monkeypatch: Envs, rank: int, world: int) -> None:
    for name, number in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", 0)):
        monkeypatch.setenv(name, str(number))


def test_ranks_above_zero_check_in_and_leave(place: Place, monkeypatch: Envs) -> None:
    path = place.job(nodes=3, launched=True)
    directory = place.mailbox.job(FIRST, 1).path
    logging.getLogger().setLevel(logging.INFO)
    for rank in (2, 1):
        be(monkeypatch, rank, 3)
        assert main(["run", str(path), "--attempt", "5-7"]) == 0
    assert not (directory / "status.json").exists()
    log = (directory / "rank-0002.log").read_text()
    assert "Rank 2 of 3" in log
    assert "This trainer is one process" in log
    be(monkeypatch, 0, 3)
    assert main(["run", str(path), "--attempt", "5-7"]) == 0
    assert place.update().steps == 6
    found = json.loads((directory / "ranks" / "5-7" / "1.json").read_text())
    assert (found["rank"], found["world"], found["local"]) == (1, 3, 0)
    assert (found["launcher"], found["pid"]) == ("torchrun", os.getpid())


@pytest.mark.parametrize("rank", [0, 1])
def test_wrong_launch_trains_nothing(
    place: Place, monkeypatch: Envs, rank: int
) -> None:
    path = place.job(nodes=2, ranks_per_node=2, launched=True)
    be(monkeypatch, rank, 2)
    assert main(["run", str(path)]) == 1
    assert not place.mailbox.updates.exists()
    if rank == 0:
        assert "started 2 processes; 2 nodes" in place.status()["error"]["message"]
        assert place.phase() == "failed"
    else:
        log = place.mailbox.job(FIRST, 1).path / "rank-0001.log"
        assert "started 2 processes" in log.read_text()


def test_a_launcher_without_known_variables_is_told(place: Place) -> None:
    assert main(["run", str(place.job(nodes=2, launched=True))]) == 1
    assert "no launcher's variables" in place.status()["error"]["message"]
    assert not place.mailbox.updates.exists()


@pytest.mark.parametrize("nodes", [1, 2])
def test_without_a_launcher_there_is_one_process(place: Place, nodes: int) -> None:
    assert main(["run", str(place.job(nodes=nodes, launched=False))]) == 0
    assert place.update().steps == 6
    assert not (place.mailbox.job(FIRST, 1).path / "ranks").exists()


def test_one_launched_rank_works_like_none(place: Place, monkeypatch: Envs) -> None:
    be(monkeypatch, 0, 1)
    assert main(["run", str(place.job(launched=True))]) == 0
    assert place.update().steps == 6
