"""Several ranks train one model: real processes, gloo, and what may happen to them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_team
from toy_team import Ranks
from worker_place import FIRST, Place, read_job, trained

from hansa.worker import checkpoint
from hansa.worker.loading import batches_of, build_task
from hansa.worker.trainers.softmax import Softmax

pytestmark = pytest.mark.integration

SECOND = "train-0002-a-1"
SOLO = {"model": {**toy_team.MODEL, "trainer": "softmax"}, "work": toy_team.WORK}


def trouble(**plan: Any) -> dict[str, str]:
    return {"TOY": json.dumps(plan)}


def rank_log(place: Place, rank: int, number: int = 1) -> Path:
    return place.mailbox.job(FIRST, number).path / f"rank-{rank:04d}.log"


def one_process(place: Place) -> tuple[Path, Softmax]:
    """Return the same steps as of one process on whole batches, and its job."""
    other = Place(place.root.parent / "other" / "mailbox")
    if not other.root.exists():
        other.publish(0, seed=1)
    job = other.job(order=SOLO)
    return job, trained(other, job, 6)


def same_update(place: Place, alone: Softmax) -> None:
    base = place.tensors(place.mailbox.version(0))
    found = place.tensors(place.mailbox.update(FIRST))
    for name, value in alone.tensors():
        assert np.abs(found[name]).max() > 1e-2
        np.testing.assert_allclose(found[name], value - base[name], atol=2e-6)


def test_orders_follow_each_other_until_one_fails_on_a_rank(place: Place) -> None:
    host = toy_team.job(place, world=4, linger_s=60.0)
    second = toy_team.job(place, world=4, assignment=SECOND)
    assert place.hand(host, 1, second)
    with Ranks(host, 4, trouble(rank=2, call=9, do="refuse")) as ranks:
        assert ranks.codes() == [1, 1, 1, 1]
    job, alone = one_process(place)
    same_update(place, alone)
    update, status = place.update(), place.status()
    assert (update.steps, update.samples) == (6, 108)
    assert update.training == {"sharding": "toy"}
    assert update.metrics["tokens"] == 108
    assert status["training"] == {"sharding": "toy", "tokens": 108}
    losses = alone.evaluate(build_task(read_job(job)).load("test", None))
    assert update.losses == pytest.approx(losses, rel=1e-5)

    error, log = place.status(assignment=SECOND)["error"], rank_log(place, 2)
    assert error["message"].startswith("Rank 2 on ")
    assert "failed: The example is too long. Its log is" in error["message"]
    assert str(log) in error["message"]
    assert (error["hint"], error["transient"]) == ("Cut it.", False)
    assert "The example is too long" in log.read_text()
    assert "Rank 2 on" in rank_log(place, 1).read_text()
    saved = checkpoint.saved(place.mailbox, SECOND, 1)
    assert [progress.step for _, progress in saved] == [2, 1]


def test_a_killed_rank_ends_all_and_half_of_them_go_on(place: Place) -> None:
    path = toy_team.job(place, world=4)
    with Ranks(path, 4, trouble(rank=3, call=4, do="kill")) as ranks:
        assert ranks.codes(of=[3]) == [-signal.SIGKILL]
        assert ranks.codes(30) == [1, 1, 1, -signal.SIGKILL]
        said = ranks.words(0)
    error = place.status()["error"]
    assert error["transient"]
    assert error["message"].startswith("Rank 3 on ")
    for words in (error["message"], said, rank_log(place, 1).read_text()):
        assert f"has ended without a word. Its log is {rank_log(place, 3)}" in words
    newest = checkpoint.newest(place.mailbox.job(FIRST, 1).checkpoint)
    assert newest is not None
    assert {f"rank-{rank}.json" for rank in range(4)} < {
        p.name for p in newest.iterdir()
    }

    with Ranks(toy_team.job(place, number=2, world=2), 2) as ranks:
        assert ranks.codes() == [0, 0]
        assert "00000003, step 3" in ranks.words(0)
    assert place.update().metrics["tokens"] == 3 * 18  # those of the second job
    same_update(place, one_process(place)[1])


def test_a_loss_that_is_no_number_names_batch_and_rank(place: Place) -> None:
    job = read_job(one_process(place)[0])
    batches = batches_of(job, build_task(job))
    with Ranks(toy_team.job(place), 2, trouble(bad=batches.indices(2)[9])) as ranks:
        assert ranks.codes() == [1, 1]
    error = place.status()["error"]
    part = ", ".join(example.place for example in batches.part(2, 1, 2)[0])
    assert f"became nan at step 3 of 6, in rank 1's part ({part})." in error["message"]
    assert f"are {', '.join(one.place for one in batches[2])}. The" in error["message"]
    kept = place.mailbox.job(FIRST, 1).checkpoint / "00000002"
    assert f"The last good state is in {kept}." in error["message"]
    assert kept.is_dir()

    # One rank can't use it, so none does.
    again = toy_team.job(place, number=2)
    with Ranks(again, 2, trouble(rank=1, do="unable")) as ranks:
        assert ranks.codes() == [0, 0]
        assert "Starting again from version 0: Rank 1 can't use" in ranks.words(0)
    same_update(place, one_process(place)[1])


def test_a_stopped_rank_and_a_dead_first_one(place: Place) -> None:
    times = {"BEAT_S": 0.2, "QUIET_S": 3.0, "GRACE_S": 0.5}
    stopped = toy_team.job(place)
    with Ranks(stopped, 2, trouble(rank=1, call=2, do="stop"), times) as ranks:
        assert ranks.codes(30, of=[0]) == [1]
    message = place.status()["error"]["message"]
    assert message.startswith("Rank 1 on ")
    assert f"was not heard of for 3 s. Its log is {rank_log(place, 1)}" in message

    dead = toy_team.job(place, number=2, assignment=SECOND)
    with Ranks(dead, 2, trouble(rank=0, call=2, do="kill")) as ranks:
        assert ranks.codes(30) == [-signal.SIGKILL, 1]
    log = place.mailbox.job(SECOND, 2).path / "rank-0001.log"
    assert re.search(r"Rank 0 on .* has ended without a word", log.read_text())
