import os
import time

import pytest

from hansa.mailbox.files import write_json
from hansa.site import rpc

RUN = "smol"
ORDER = "train-0001-polaris-1"
KEY = f"{ORDER}.1"
OTHER = "train-0001-polaris-10"


def versions(facility, *numbers):
    for number in numbers:
        home = facility.mail / "versions" / str(number)
        home.mkdir(parents=True)
        (home / "manifest.json").write_text("{}")
        (home / "model-00001.safetensors").write_bytes(b"x")
        (home / "model-00001.safetensors").chmod(0o444)


def test_tidy(facility):
    versions(facility, *range(8))
    answer = {"removed": [0, 1, 3, 4, 5], "states": [], "collected": []}
    assert facility.data(rpc.tidy(RUN, [2, 99])) == answer
    left = sorted(entry.name for entry in (facility.mail / "versions").iterdir())
    assert left == ["2", "6", "7"]
    assert facility.data(rpc.tidy(RUN, [2]))["removed"] == []
    assert facility.data(rpc.tidy("other", []))["removed"] == []


def test_tidy_keeps_what_jobs_use(facility, submit):
    facility.data(submit())
    versions(facility, *range(6))
    evaluation = submit(
        assignment="evaluate-0001-polaris-1", kind="evaluate", version=2, steps=None
    )
    facility.data(evaluation)
    bound = facility.mail / "jobs" / KEY / "bound.json"
    bound.write_text('{"base": 1}')
    assert facility.data(rpc.tidy(RUN, []))["removed"] == [0, 3]
    for job in facility.batch.jobs.values():
        job["state"] = "DONE"
    assert facility.data(rpc.tidy(RUN, []))["removed"] == [1, 2]


def states(facility, *refs):
    for ref in refs:
        home = facility.mail / ref.replace("state/", "states/")
        home.mkdir(parents=True)
        (home / "manifest.json").write_text("{}")
        (home / "model-00001.safetensors").write_bytes(b"x")


def states_left(facility):
    homes = (facility.mail / "states").glob("*/*/manifest.json")
    return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in homes)


def test_tidy_removes_old_states_by_name(facility):
    states(facility, *(f"state/c-a/{n}" for n in (1, 2, 9, 10)), "state/other/1")
    assert facility.data(rpc.tidy(RUN, [1]))["states"] == ["state/c-a/2"]
    assert states_left(facility) == ["c-a/1", "c-a/10", "c-a/9", "other/1"]
    assert facility.data(rpc.tidy(RUN, [1]))["states"] == []
    assert facility.data(rpc.tidy(RUN, []))["states"] == ["state/c-a/1"]
    assert states_left(facility) == ["c-a/10", "c-a/9", "other/1"]


def test_tidy_keeps_the_states_of_orders_in_use(facility, submit):
    states(facility, *(f"state/c-a/{n}" for n in range(1, 6)))
    facility.data(submit(control="state/c-a/2"))
    facility.batch.jobs["1"]["state"] = "RUNNING"
    facility.data(submit(assignment=OTHER, control="state/c-a/3", job={"nodes": 1}))
    assert facility.data(rpc.tidy(RUN, []))["states"] == ["state/c-a/1"]
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(rpc.tidy(RUN, []))["states"] == ["state/c-a/2"]
    facility.status(f"{OTHER}.1", "done")  # as of an order in an allocation
    assert facility.data(rpc.tidy(RUN, []))["states"] == ["state/c-a/3"]


def test_states_that_are_still_coming_are_left(facility):
    states(facility, *(f"state/c-a/{n}" for n in (1, 2)))
    arriving = facility.mail / "states" / "c-a" / "3"
    arriving.mkdir()
    assert facility.data(rpc.tidy(RUN, []))["states"] == []
    assert arriving.exists()


@pytest.mark.parametrize(
    "name",
    [
        "versions/.1.x",
        "states/c-a/.1.x",
        f"updates/.refused-{ORDER}.2",
        f"updates/.{ORDER}.1f",
    ],
)
def test_tidy_removes_what_broken_transfers_left(facility, name):
    old, new = facility.mail / name, facility.mail / f"{name}new"
    for path in (old, new):
        path.mkdir(parents=True)
        (path / "part.safetensors").touch()
    past = time.time() - 2 * 86_400
    os.utime(old, (past, past))
    facility.data(rpc.tidy(RUN, []))
    assert (old.exists(), new.exists()) == (False, True)


def results(facility, *keys):
    """Write what jobs leave behind: an update, a checkpoint, a log."""
    for key in keys:
        checkpoint = facility.mail / "jobs" / key / "checkpoint" / "00000012"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.safetensors").touch()
        (facility.mail / "jobs" / key / "log.txt").touch()
        update = facility.mail / "updates" / key.rpartition(".")[0]
        update.mkdir(parents=True, exist_ok=True)
        (update / "manifest.json").touch()


def files(facility):
    paths = facility.mail.rglob("*")
    return {str(path.relative_to(facility.mail)) for path in paths if path.is_file()}


def own_files(facility):
    return {
        home.name: sorted(path.name for path in home.iterdir())
        for home in (facility.own / "jobs").iterdir()
    }


def test_tidy_removes_what_was_collected(facility, submit):
    facility.data(submit())
    facility.batch.jobs["1"]["state"] = "DONE"
    results(facility, KEY, f"{ORDER}.2", f"{OTHER}.1")
    before = files(facility)
    request = rpc.tidy(RUN, [], [ORDER, "train-0009-polaris-1"])
    gone = {
        f"updates/{ORDER}/manifest.json",
        f"jobs/{ORDER}.1/checkpoint/00000012/state.safetensors",
        f"jobs/{ORDER}.2/checkpoint/00000012/state.safetensors",
    }
    answer = {"removed": [], "states": [], "collected": [ORDER, "train-0009-polaris-1"]}
    for _ in range(2):
        assert facility.data(request) == answer
        assert before - files(facility) == gone
        assert own_files(facility) == {KEY: ["submitted.json"]}
    assert not (facility.mail / "updates" / ORDER).exists()
    assert not (facility.mail / "jobs" / KEY / "checkpoint").exists()


def test_two_requests_may_tidy_the_same_at_once(facility, submit, monkeypatch):
    facility.data(submit())
    facility.batch.jobs["1"]["state"] = "DONE"
    results(facility, KEY)
    versions(facility, *range(4))
    request, ask, answers = rpc.tidy(RUN, [], [ORDER]), facility.batch._jobs, []

    def while_another_tidies(*ids):
        monkeypatch.setattr(facility.batch, "_jobs", ask)
        answers.append(facility.data(request))
        return ask(*ids)

    monkeypatch.setattr(facility.batch, "_jobs", while_another_tidies)
    answers.append(facility.data(request))
    assert [answer["collected"] for answer in answers] == [[ORDER], [ORDER]]
    assert not (facility.mail / "updates" / ORDER).exists()
    assert not (facility.mail / "versions" / "0").exists()


def test_tidy_takes_nothing_from_jobs_that_run(facility, submit):
    facility.data(submit())
    results(facility, KEY, f"{OTHER}.1")
    before = files(facility)
    request = rpc.tidy(RUN, [], [ORDER])
    assert facility.data(request)["collected"] == []
    assert files(facility) == before
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(request)["collected"] == [ORDER]


def test_tidy_asks_the_scheduler_only_if_something_is_there(facility):
    assert facility.data(rpc.tidy(RUN, [], [ORDER]))["collected"] == [ORDER]
    assert facility.batch.asked == []


def test_tidy_follows_no_link_among_the_states(facility):
    """A name that leads to the versions is no name of states."""
    versions(facility, *range(5))
    (facility.mail / "states").mkdir()
    (facility.mail / "states" / "c-a").symlink_to(facility.mail / "versions")
    request = rpc.tidy(RUN, range(5))
    assert facility.data(request)["states"] == facility.data(request)["removed"] == []
    assert facility.data(rpc.tidy(RUN, [0, 1, 2]))["states"] == []
    assert (facility.mail / "versions" / "2").exists()


@pytest.mark.parametrize(
    "link", ["versions", "updates", "states", "states/c-a", f"jobs/{KEY}"]
)
def test_tidy_removes_nothing_outside(facility, tmp_path, link):
    outside = tmp_path / "outside"
    for name in (f"{ORDER}", "checkpoint", ".cache", "c/1", "c/2", "c/3", *"0123"):
        (outside / name).mkdir(parents=True)
        (outside / name / "manifest.json").touch()
        os.utime(outside / name, (0, 0))
    before = sorted(outside.rglob("*"))
    (facility.mail / link).parent.mkdir(parents=True)
    (facility.mail / link).symlink_to(outside)
    error = facility.error(rpc.tidy(RUN, [], [ORDER]))
    assert error["code"] == "FACILITY_REFUSES"
    assert sorted(outside.rglob("*")) == before


def test_a_late_request_of_a_collected_order_submits_nothing(facility, submit):
    facility.data(submit())
    facility.batch.jobs["1"]["state"] = "DONE"
    facility.batch.forgotten.add("1")
    facility.data(rpc.tidy(RUN, [], [ORDER]))
    assert not facility.notes().job.exists()
    again = facility.data(submit())
    assert (again["job"], again["found"]) == ("1", True)
    assert facility.batch.submissions == 1


def test_a_late_request_finds_a_job_that_nobody_had_noted(facility, submit):
    facility.data(submit(nonce="n"))
    facility.notes().submitted.unlink()  # the agent was stopped before that
    facility.deliver(KEY)
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(rpc.tidy(RUN, [], [ORDER]))["collected"] == [ORDER]
    assert not facility.notes().job.exists()
    again = facility.data(submit(nonce="n"))
    assert (again["job"], again["found"]) == ("1", True)
    assert facility.batch.submissions == 1


def test_a_late_request_finds_the_host_that_nobody_had_noted(facility, place, submit):
    facility.data(place(AHEAD))
    facility.data(submit())
    facility.notes().submitted.unlink()
    facility.deliver(KEY)
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(rpc.tidy(RUN, [], [AHEAD, ORDER]))["collected"] == [ORDER]
    again = facility.data(submit())
    assert (again["host"], again["found"]) == (HOST, True)
    assert facility.batch.submissions == 1
    assert facility.data(rpc.tidy(RUN, [], [AHEAD]))["collected"] == [AHEAD]


SECOND = "train-0002-polaris-1"
GUEST = f"{SECOND}.1"


@pytest.fixture
def lingering(facility, submit):
    """A job whose own order is over, and an order that was handed over to it."""
    facility.data(submit(job={"linger": 60}))
    facility.batch.jobs["1"]["state"] = "RUNNING"
    results(facility, KEY)
    facility.status(KEY, "lingering")
    assert facility.data(submit(assignment=SECOND, round=2))["host"] == KEY
    return facility


def test_results_go_while_the_job_lingers_and_its_notes_stay(lingering):
    facility = lingering
    results(facility, GUEST)
    facility.status(GUEST, "training")
    request = rpc.tidy(RUN, [], [ORDER, SECOND])
    assert facility.data(request)["collected"] == []
    assert not (facility.mail / "updates" / ORDER).exists()
    assert not (facility.mail / "jobs" / KEY / "checkpoint").exists()
    assert (facility.mail / "updates" / SECOND).exists()  # it is at work
    assert facility.notes(KEY).handover(1).exists()
    facility.status(GUEST, "done")
    assert facility.data(request)["collected"] == []
    assert not (facility.mail / "updates" / SECOND).exists()
    assert facility.notes(GUEST).job.exists()
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(request)["collected"] == [ORDER, SECOND]
    notes = {KEY: ["submitted.json"], GUEST: ["submitted.json"]}
    assert own_files(facility) == notes


def test_versions_of_orders_in_an_allocation_are_kept(lingering):
    facility = lingering
    versions(facility, *range(6))
    write_json(facility.mail / "jobs" / KEY / "bound.json", {"base": 1})
    write_json(facility.mail / "jobs" / GUEST / "bound.json", {"base": 2})
    assert facility.data(rpc.tidy(RUN, []))["removed"] == [0, 1, 3]
    facility.status(GUEST, "done")
    assert facility.data(rpc.tidy(RUN, []))["removed"] == [2]


AHEAD = "ahead-0001-polaris-1"
HOST = f"{AHEAD}.1"


def test_notes_of_a_job_without_an_order_go_when_it_has_ended(facility, place, submit):
    facility.data(place(AHEAD))
    assert facility.data(submit())["host"] == HOST
    facility.batch.jobs["1"]["state"] = "RUNNING"
    request = rpc.tidy(RUN, [], [AHEAD])
    assert facility.data(request)["collected"] == []
    assert facility.notes(HOST).handover(1).exists()
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(request)["collected"] == [AHEAD]
    assert own_files(facility)[HOST] == ["submitted.json"]


def test_notes_stay_while_they_alone_tell_of_a_handover(facility, place, submit):
    facility.data(place(AHEAD))
    facility.data(submit())
    facility.notes(KEY).submitted.unlink()  # the agent was stopped before that
    facility.deliver(KEY)
    facility.batch.jobs["1"]["state"] = "DONE"
    request = rpc.tidy(RUN, [], [AHEAD])
    assert facility.data(request)["collected"] == []
    again = facility.data(submit())
    assert (again["host"], again["found"]) == (HOST, True)
    assert facility.data(request)["collected"] == [AHEAD]
    assert facility.batch.submissions == 1
