from pathlib import Path

import pytest
from pydantic import ValidationError
from talking import Talk, failed

from hansa.core.errors import SchedulerError
from hansa.scheduler.base import JobSpec, JobState
from hansa.scheduler.block import BlockOptions, BlockScheduler


def driver(**options):
    return BlockScheduler(BlockOptions(**options), Path("/state"))


def spec(**fields):
    usual = {
        "name": "hansa.r.train-0001-a-1.1",
        "nodes": 1,
        "time_s": 90.0,
        "command": ["python", "-m", "hansa.worker", "run", "/m/job.json"],
        "directory": Path("/m/j"),
        "log": Path("/m/j/log.txt"),
        "warning_s": 18.0,
    }
    return JobSpec(**{**usual, **fields})


def test_script_says_what_the_queue_must_know():
    script = driver(nodes=2).render(spec(nodes=2, launch="$PARSL_MPI_PREFIX"))
    assert script.splitlines()[:7] == [
        "#!/bin/bash -l",
        "#HANSA name=hansa.r.train-0001-a-1.1",
        "#HANSA nodes=2",
        "#HANSA time=90",
        "#HANSA warning=18",
        "#HANSA log=/m/j/log.txt",
        "#HANSA directory=/m/j",
    ]
    assert "\nexec $PARSL_MPI_PREFIX python -m hansa.worker" in script


def test_a_launcher_that_dies_of_the_warning_gets_none():
    assert "#HANSA warning=0\n" in driver().render(spec(launch="torchrun"))


def test_a_job_wider_than_the_block_is_refused():
    with pytest.raises(SchedulerError, match="asks for 3 nodes; the block has 2") as e:
        driver(nodes=2).render(spec(nodes=3))
    assert "scheduler.nodes" in e.value.hint
    assert not e.value.transient


@pytest.mark.parametrize("options", [{"nodes": 0}, {"stale": "0s"}, {"slots": 1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValidationError):
        BlockOptions(**options)


def test_the_queue_is_told_how_old_a_beat_may_be():
    talk = Talk('{"jobs": []}')
    assert talk.hold(driver(stale="5m").jobs()) == {}
    assert talk.asked[0][-5:] == ["list", "--dir", "/state/block", "--stale", "300"]


def test_a_job_that_waits_says_for_what():
    told = '{"jobs": [{"id": "3", "name": "x", "state": "QUEUED", "submitted": 5}]}'
    job = Talk(told).hold(driver().jobs())["3"]
    assert (job.state, job.submitted, job.eligible) == (JobState.QUEUED, 5, 5)
    assert job.why == "It waits for a worker in the block."


def test_refusals_and_nonsense_are_errors():
    with pytest.raises(SchedulerError, match="the disk is full"):
        Talk(failed("the disk is full")).hold(driver().submit(Path("s.sh")))
    with pytest.raises(SchedulerError, match="not a job id"):
        Talk("done").hold(driver().submit(Path("s.sh")))
    with pytest.raises(SchedulerError, match="can't be read"):
        Talk("[]").hold(driver().jobs())
    with pytest.raises(SchedulerError, match="refuses to cancel"):
        Talk(failed("no")).hold(driver().cancel(["1"]))
