"""Rank 0 and a follower, without a process group: what one of them can't do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from lines import PEERS, connected
from worker_place import Place, read_job

from hansa.core.errors import StorageFull
from hansa.worker.base import Trainer
from hansa.worker.loading import Work
from hansa.worker.team import Team
from hansa.worker.team.crew import Crew
from hansa.worker.team.follower import Follower
from hansa.worker.team.leader import Leader
from hansa.worker.team.watch import Watch


class Disk:
    """A trainer that can write, or can't."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.full = False

    def save(self, directory: Path) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        (directory / self.name).write_text("all")


@contextmanager
def two(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Leader, list[Disk], Future[None]]]:
    monkeypatch.setattr(Crew, "begin", lambda crew, job: None)
    near, far = connected()
    crews, disks, job = [], [Disk("0"), Disk("1")], read_job(place.job())
    for rank, line in enumerate((near, far)):
        watch = Watch(rank, PEERS, lambda: None)
        watch.add(1 - rank, line)
        watch.start()
        crews.append(Crew(Team(rank=rank, world=2), watch, PEERS, ""))
    leader, follower = Leader(job, crews[0]), Follower(crews[1])
    follower._now = Work(job, crews[1].team)
    for work, disk in zip((leader, follower._now), disks, strict=True):
        work._trainer = cast(Trainer, disk)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follower.run)
        try:
            yield leader, disks, following
        finally:
            crews[0].end()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_can_not_save_ends_nobody(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int
) -> None:
    with two(place, monkeypatch) as (leader, disks, following):
        disks[rank].full = True
        with pytest.raises(StorageFull, match="No space is left for"):
            leader.save(tmp_path)
        # The other one was waited for: nobody writes any more.
        assert [path.name for path in tmp_path.glob("[01]")] == [str(1 - rank)]
        disks[rank].full = False
        leader.save(tmp_path)
        assert (tmp_path / str(rank)).exists()
    following.result(20)
