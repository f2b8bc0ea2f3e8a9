"""The operation `work`: inside of a block a job that waits is taken and run."""

import json
import sys
import time

import pytest

from hansa.scheduler.block_queue import Store, once
from hansa.scheduler.block_run import END_S
from hansa.site import rpc
from hansa.site.batch import run_command

RUN = "smol"
KEY = "train-0001-polaris-1.1"


@pytest.fixture
def block(facility, monkeypatch):
    """Return a facility whose jobs wait for a block, with this process inside of it."""
    facility.batch = run_command
    facility.use(
        scheduler={"type": "block", "nodes": 2},
        environment={"python": sys.executable, "launch": "echo ran $HANSA_JOB_ID #"},
    )
    monkeypatch.setenv("HANSA_BLOCK", "2")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    return facility


def scheduler_of(facility, key=KEY):
    return facility.data(rpc.poll(RUN, [key]))["jobs"][key]["scheduler"]


def log_of(facility, key=KEY):
    path = facility.mail / "jobs" / key / "log.txt"
    return path.read_text() if path.exists() else ""


def test_the_request_is_understood():
    ask = rpc.parse_request(rpc.work(RUN, KEY))
    assert (ask.run, ask.job) == (RUN, KEY)


@pytest.mark.integration
def test_a_job_waits_until_it_is_worked_on(block, submit):
    job = block.data(submit())["job"]
    waiting = scheduler_of(block)
    assert (waiting["state"], waiting["why"]) == (
        "QUEUED",
        "It waits for a worker in the block.",
    )
    done = block.data(rpc.work(RUN, KEY))
    assert done == {"job": job, "state": "DONE", "taken": True, "reason": ""}
    assert log_of(block) == f"ran {job}\n"
    time.sleep(block.site.poll.first)
    over = scheduler_of(block)
    assert (over["state"], over["nodes"], over["limit_s"]) == ("DONE", 2, 100)
    assert over["submitted"] <= over["started"] <= over["ended"]


@pytest.mark.integration
def test_a_second_request_runs_nothing(block, submit):
    block.data(submit())
    block.data(rpc.work(RUN, KEY))
    again = block.data(rpc.work(RUN, KEY))
    assert (again["state"], again["taken"]) == ("DONE", False)
    assert log_of(block).count("ran") == 1


@pytest.mark.integration
def test_a_cancelled_job_never_runs(block, submit):
    block.data(submit())
    assert block.data(rpc.cancel(RUN, [KEY])) == {"cancelled": [KEY]}
    told = block.data(rpc.work(RUN, KEY))
    assert (told["state"], told["taken"]) == ("CANCELLED", False)
    assert log_of(block) == ""


@pytest.mark.integration
def test_a_job_queued_ahead_and_a_trial_are_worked_on_like_any_other(block, place):
    for assignment in ("ahead-0001-polaris-1", "trial-0001-polaris-1"):
        block.data(place(assignment))
        assert block.data(rpc.work(RUN, f"{assignment}.1"))["taken"]


@pytest.mark.integration
def test_a_job_is_found_by_its_name_if_nobody_noted_its_id(block, submit):
    block.data(submit())
    block.notes().submitted.unlink()
    assert block.data(rpc.work(RUN, KEY))["taken"]


@pytest.mark.integration
def test_an_id_that_another_job_has_now_is_not_believed(block, submit):
    block.data(submit())
    other = Store(block.site.state / "block").submit(other_script(block))
    note = block.notes().submitted
    note.write_text(json.dumps({**json.loads(note.read_text()), "job": other}))
    assert block.data(rpc.work(RUN, KEY))["job"] != other


def other_script(block):
    script = block.root / "other.sh"
    lines = [f"#HANSA {key}=1" for key in ("nodes", "time", "log", "directory")]
    script.write_text("\n".join(["#!/bin/sh", "#HANSA name=hansa.other.x.1", *lines]))
    return script


@pytest.mark.integration
def test_the_end_of_the_block_is_known(block, submit, monkeypatch):
    block.data(submit())
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 1e6)))
    monkeypatch.setenv("HANSA_BLOCK_ENDS", str(int(time.time() + END_S + 20)))
    told = block.data(rpc.work(RUN, KEY))
    assert (told["state"], told["taken"]) == ("QUEUED", False)
    assert told["reason"] == "too little is left of the block's walltime"
    assert log_of(block) == ""


@pytest.mark.integration
@pytest.mark.parametrize("text", ["", "0", "many", "-2"])
def test_outside_of_a_block_nothing_is_run(block, submit, monkeypatch, text):
    block.data(submit())
    monkeypatch.setenv("HANSA_BLOCK", text)
    error = block.error(rpc.work(RUN, KEY))
    assert error["code"] == "FACILITY_REFUSES"
    assert "HANSA_BLOCK" in error["message"]
    assert "worker_init" in error["hint"]
    assert scheduler_of(block)["state"] == "QUEUED"


@pytest.mark.integration
def test_a_block_that_is_too_small_refuses(block, submit, monkeypatch):
    block.data(submit())
    monkeypatch.setenv("HANSA_BLOCK", "1")
    error = block.error(rpc.work(RUN, KEY))
    assert "asks for 2 nodes; this block has 1" in error["message"]
    assert "nodes_per_block" in error["hint"]
    assert scheduler_of(block)["state"] == "QUEUED"


@pytest.mark.integration
def test_a_job_wider_than_the_block_is_not_submitted(block, submit):
    error = block.error(submit(job={"nodes": 3}))
    assert "asks for 3 nodes; the block has 2" in error["message"]
    assert not (block.site.state / "block").exists()


def test_a_facility_with_a_batch_system_runs_nothing(facility, monkeypatch):
    monkeypatch.setenv("HANSA_BLOCK", "2")
    error = facility.error(rpc.work(RUN, KEY))
    assert "batch system" in error["message"]
    assert "type: block" in error["hint"]


def test_an_unknown_job_is_told(block):
    error = block.error(rpc.work(RUN, KEY))
    assert KEY in error["message"]
    assert "`state`" in error["hint"]


@pytest.mark.integration
def test_a_damaged_queue_is_told(block, submit):
    job = block.data(submit())["job"]
    entry = Store(block.site.state / "block").entry(job)
    (entry.path / "job.json").write_text("{")
    error = block.error(rpc.work(RUN, KEY))
    assert (error["code"], "damaged" in error["message"]) == ("SCHEDULER", True)


@pytest.mark.integration
def test_a_lost_block_is_seen_by_a_poll(block, submit):
    block.use(
        scheduler={"type": "block", "nodes": 2, "stale": 1.0},
        poll={"first": 0.02, "longest": 1},
    )
    job = block.data(submit())["job"]
    entry = Store(block.site.state / "block").entry(job)
    once(entry.turn, {"started": time.time(), "limit_s": 9.0, "host": "n1"})
    end = time.monotonic() + 100
    while (told := scheduler_of(block))["state"] == "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert told["state"] == "NODE_FAIL"
    assert "n1" in told["why"]
