import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time

import pytest

from hansa.core.errors import SchedulerError
from hansa.site import rpc

RUN = "smol"
ORDER = "train-0001-polaris-1"
KEY = f"{ORDER}.1"


def test_submit_writes_order_job_and_script(facility, submit):
    data = facility.data(submit())
    name = f"hansa.{RUN}.{KEY}"
    assert data == {"job": "1", "name": name, "found": False, "host": ""}
    order = json.loads((facility.mail / f"orders/{ORDER}.json").read_text())
    assert order == submit()["order"]
    job = json.loads(facility.notes().job.read_text())
    assert job == {
        "schema": 1,
        "key": KEY,
        "order": order,
        "number": 1,
        "nonce": "",
        "facility": "polaris",
        "mailbox": str(facility.mail),
        "job_dir": str(facility.mail / "jobs" / KEY),
        "state_dir": str(facility.own / "jobs" / KEY),
        "task": {
            "name": "digits",
            "source": None,
            "splits": ["ones"],
            "test_splits": None,
            "cache": str(facility.site.mailbox / ".cache"),
            "options": {"sites": 4, "x": 1},  # the site's word goes last
        },
        "modules": ["mylab.models:net"],
        "program": [],
        "nodes": 2,
        "ranks_per_node": 1,
        "launched": False,
        "queue": None,
        "account": None,
        "reservation": None,
        "walltime_s": 100.0,
        "heartbeat_s": 1.0,
        "checkpoint_s": 30.0,
        "linger_s": 0.0,
        "ahead_s": 0.0,
        "hold_s": 0.0,
        "scheduler": {
            "type": "local",
            "options": {"slots": 64},
            "state": str(facility.site.state),
        },
        "node": {"gpus": 0, "gpu_memory": None},
    }
    script = facility.notes().script.read_text()
    assert f"#HANSA name={name}\n#HANSA nodes=2\n#HANSA time=100\n" in script
    assert "#HANSA warning=20\n" in script
    assert "export OMP_NUM_THREADS=1\nexport PYTHONUNBUFFERED=1\n" in script
    assert "export PYTHONSAFEPATH=1\n" in script
    path = facility.notes().job
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert script.endswith(
        f"exec {sys.executable} -P -m hansa.worker run {path} --sha256 {digest} "
        '--attempt "$HANSA_ATTEMPT"\n'
    )
    assert facility.site.state.stat().st_mode & 0o777 == 0o700
    # Nothing that runs lies where the server can write.
    shared = {path.name for path in facility.mail.rglob("*") if path.is_file()}
    assert shared == {f"{ORDER}.json"}
    assert (facility.mail / "jobs" / KEY).is_dir()


@pytest.mark.integration
def test_a_job_imports_nothing_from_its_directory(facility, submit, tmp_path):
    """Whoever may write the mailbox must not thereby run code in a job."""
    facility.data(submit())
    home, seen = facility.mail / "jobs" / KEY, tmp_path / "seen"
    for module in ("json", "numpy", "ml_dtypes", "hansa"):
        (home / f"{module}.py").write_text(f"open({str(seen)!r}, 'w').close()\n")
    script = facility.notes().script.read_text()
    words = shlex.split(script.splitlines()[-1])[1:]
    words[words.index("run") :] = ["--help"]
    done = subprocess.run(words, cwd=home, capture_output=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert not seen.exists()


def test_the_sites_environment(facility, submit):
    facility.use(
        environment={
            "setup": ["module load conda"],
            "launch": "mpiexec -n {ranks} --ppn {ranks_per_node} -N {nodes}",
            "variables": {"OMP_NUM_THREADS": 8, "X": "a b"},
            "python": "python3.12",
        }
    )
    job = {"nodes": 1, "time": 3600}
    script = facility.data(submit(job=job, dry_run=True))["script"]
    assert "#HANSA warning=60\n" in script
    assert "module load conda\n" in script
    assert "export OMP_NUM_THREADS=8\n" in script
    assert "export X='a b'\n" in script
    launch = "exec mpiexec -n 1 --ppn 1 -N 1"
    assert f"{launch} python3.12 -P -m hansa.worker run " in script
    job = {"nodes": 3, "ranks_per_node": 4, "time": 3600}
    reply = facility.data(submit(job=job, dry_run=True))
    assert "exec mpiexec -n 12 --ppn 4 -N 3 python3.12" in reply["script"]
    assert reply["notes"] == []


def test_the_sites_node_and_directives(facility, submit):
    facility.use(
        node={"gpus": 4, "gpu_memory": "40GB", "ranks": 4},
        environment={"launch": "srun -n {ranks}", "directives": ["-C gpu", "-q x"]},
    )
    reply = facility.data(submit(dry_run=True))
    assert "#HANSA -C gpu\n#HANSA -q x\n" in reply["script"]
    assert "exec srun -n 8 " in reply["script"]
    facility.data(submit(job={"ranks_per_node": 2, "hold": 7, "queue": "debug"}))
    job = json.loads(facility.notes().job.read_text())
    assert (job["nodes"], job["ranks_per_node"], job["launched"]) == (2, 2, True)
    assert job["node"] == {"gpus": 4, "gpu_memory": 40 * 10**9}
    assert (job["hold_s"], job["queue"]) == (7.0, "debug")


def test_one_process_on_many_nodes_is_said(facility, submit):
    (note,) = facility.data(submit(dry_run=True))["notes"]
    assert "one process on the first of its 2 nodes" in note
    job = {"nodes": 1, "ranks_per_node": 4}
    (note,) = facility.data(submit(dry_run=True, job=job))["notes"]
    assert "one process, not 4" in note
    assert facility.data(submit(dry_run=True, job={"nodes": 1}))["notes"] == []


def test_the_model_source_is_renamed_for_the_worker_only(facility, submit):
    model = {"trainer": "softmax", "source": "llama", "dtype": "float32"}
    facility.data(submit(model=model))
    order = json.loads((facility.mail / f"orders/{ORDER}.json").read_text())
    job = json.loads(facility.notes().job.read_text())
    assert order["model"]["source"] == "llama"
    assert job["order"]["model"]["source"] == "/models/llama"


def test_a_dry_run_checks_and_writes_nothing(facility, submit):
    data = facility.data(submit(dry_run=True))
    assert (data["job"], data["found"], data["host"]) == (None, False, "")
    assert data["script"].startswith("#!/bin/sh\n")
    assert data["accepted"] == f"fine: {data['script'].count(chr(10))} lines"
    assert not facility.site.mailbox.exists()
    assert not facility.site.state.exists()
    assert facility.batch.submissions == 0
    error = facility.error(submit(dry_run=True, job={"nodes": 9}))
    assert error["code"] == "FACILITY_REFUSES"
    facility.batch.refuse = "invalid account"
    error = facility.error(submit(dry_run=True))
    assert (error["code"], error["message"]) == ("SCHEDULER", "no: invalid account")


def test_a_plan_on_another_machine_asks_no_batch_system(facility, submit):
    facility.batch.away = AssertionError("asked")
    facility.agent = facility.new_agent(ask_batch=False)
    data = facility.data(submit(dry_run=True))
    assert data["script"].startswith("#!/bin/sh\n")
    assert "accepted" not in data


def test_submitting_twice_submits_once(facility, submit):
    first, second = facility.data(submit()), facility.data(submit())
    assert (first["found"], second["found"]) == (False, True)
    assert second["job"] == first["job"]
    assert facility.batch.submissions == 1


@pytest.mark.parametrize("transient", [True, False])
def test_a_submission_whose_answer_was_lost_is_found_at_once(
    facility, submit, transient
):
    facility.batch.lose_answer = True
    facility.batch.lost = SchedulerError("no answer, or nonsense", transient=transient)
    data = facility.data(submit())
    assert data["job"] == "1"
    facility.batch.lose_answer = False
    assert facility.data(submit())["found"]
    assert facility.batch.submissions == 1


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "DONE"])
def test_a_submission_whose_answer_was_lost_is_found_later(facility, submit, state):
    """The batch system is gone when it should be asked for what it has accepted."""
    batch = facility.batch
    batch.lose_answer = True

    def go_away():
        batch.away = SchedulerError("gone", transient=True)

    add = batch.add
    batch.add = lambda name: (add(name), go_away())[0]
    error = facility.error(submit())
    assert (error["code"], error["transient"]) == ("SCHEDULER", True)
    assert error["message"] == "no answer"
    batch.away, batch.add, batch.lose_answer = None, add, False
    batch.jobs["1"]["state"] = state
    data = facility.data(submit())
    assert (data["job"], data["found"]) == ("1", True)
    assert batch.submissions == 1


def test_a_submission_that_was_lost_is_tried_again(facility, submit):
    facility.batch.refuse = "come later"
    error = facility.error(submit())
    assert error["transient"]
    assert facility.batch.submissions == 0
    facility.batch.refuse = ""
    assert facility.data(submit())["found"] is False
    assert facility.batch.submissions == 1


def test_a_job_is_found_after_a_crash_before_its_note(facility, submit):
    facility.data(submit())
    facility.notes().submitted.unlink()
    data = facility.data(submit())
    assert (data["job"], data["found"]) == ("1", True)
    assert json.loads(facility.notes().submitted.read_text())["job"] == "1"
    assert facility.batch.submissions == 1


def test_a_job_that_the_scheduler_forgot_is_not_submitted_again(facility, submit):
    facility.data(submit())
    facility.batch.jobs.clear()
    data = facility.data(submit())
    assert (data["job"], data["found"]) == ("1", True)
    assert facility.batch.submissions == 1


def test_two_agents_at_once_submit_once(facility, submit):
    """The first call timed out at the server, which asks again while it works."""
    at_work, go_on = threading.Event(), threading.Event()
    batch, replies = facility.batch, []

    def slow():
        at_work.set()
        assert go_on.wait(20)

    batch.before_submit = slow

    def ask():
        replies.append(facility.data(submit()))

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert at_work.wait(20)
    second.start()
    go_on.set()
    first.join(20)
    second.join(20)
    assert sorted(reply["found"] for reply in replies) == [False, True]
    assert batch.submissions == 1


@pytest.mark.parametrize("word", ["cancel", "leave"])
def test_a_job_that_is_being_submitted_is_not_missed(facility, submit, place, word):
    """The batch system is slow to take it; the word comes while it does."""
    at_work, go_on, asks = threading.Event(), threading.Event(), threading.Event()
    batch, replies = facility.batch, {}

    def slow():
        at_work.set()
        assert go_on.wait(20)

    batch.before_submit = slow
    request, key = (submit(), KEY) if word == "cancel" else (place(AHEAD), f"{AHEAD}.1")
    say = (
        rpc.cancel(RUN, [key, key]) if word == "cancel" else rpc.tell(RUN, [key], word)
    )

    def ask(name, what):
        if name == "word":
            asks.set()
        replies[name] = facility.new_agent().handle(what)

    first = threading.Thread(target=ask, args=("job", request))
    second = threading.Thread(target=ask, args=("word", say))
    first.start()
    assert at_work.wait(20)
    second.start()
    assert asks.wait(20)
    second.join(0.3)  # without the lock it is over by now
    go_on.set()
    first.join(20)
    second.join(20)
    assert replies["job"]["ok"]
    assert key in replies["word"]["data"][{"cancel": "cancelled"}.get(word, "told")]
    assert batch.jobs["1"]["state"] == "CANCELLED"


@pytest.mark.parametrize("kind", ["cancel", "tell"])
def test_words_to_a_run_that_was_never_here_leave_nothing(facility, kind):
    say = rpc.cancel(RUN, [KEY]) if kind == "cancel" else rpc.tell(RUN, [KEY], "leave")
    facility.data(say)
    assert not facility.site.state.exists()


@pytest.mark.parametrize("kind", ["train", "ahead"])
def test_what_was_cancelled_before_it_came_is_refused_for_a_while(
    facility, submit, place, monkeypatch, kind
):
    ask = submit() if kind == "train" else place()
    key = KEY if kind == "train" else "ahead-0001-polaris-1.1"
    late = {**rpc.cancel(RUN, [key]), "late": 500.0}
    assert facility.data(late) == {"cancelled": []}
    error = facility.error(ask)
    assert "was cancelled before" in error["message"]
    assert error["transient"]  # a run that is resumed waits for it
    assert not facility.batch.alive()
    now = time.time()
    monkeypatch.setattr("hansa.site.submission.time.time", lambda: now + 501)
    assert facility.data(ask)["job"] == "1"


def test_a_job_that_is_there_when_it_is_cancelled_is_found_by_a_late_request(
    facility, submit
):
    facility.data(submit())
    late = {**rpc.cancel(RUN, [KEY]), "late": 500.0}
    assert facility.data(late) == {"cancelled": [KEY]}
    assert facility.data(submit())["found"]
    assert not facility.notes().refuse.exists()


def test_an_order_that_was_only_cancelled_may_be_submitted(facility, submit):
    """As by a run that was interrupted before it had submitted, and is resumed."""
    facility.data(rpc.cancel(RUN, [KEY]))
    assert facility.data(submit())["job"] == "1"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("jobs/{key}", "other"),
        ("jobs/{key}/checkpoint", "other"),
        ("jobs/{key}/log.txt", "other/log.txt"),
        ("jobs/{key}/ranks/1-2/0.json", "other/x"),
        ("jobs/{key}/checkpoint", "/"),
        ("updates", "/"),
    ],
)
def test_a_job_with_links_in_its_directory_is_not_submitted(
    facility, submit, link, target
):
    """Even links to elsewhere in the mailbox: the worker would follow them."""
    (facility.mail / "other").mkdir(parents=True)
    path = facility.mail / link.format(key=KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(facility.mail / target)
    error = facility.error(submit())
    assert (error["code"], error["transient"]) == ("FACILITY_REFUSES", False)
    assert "symbolic link" in error["message"] + error["hint"]
    assert facility.batch.submissions == 0
    path.unlink()
    assert facility.data(submit())["job"] == "1"


def test_orders_never_change(facility, submit):
    facility.data(submit())
    error = facility.error(submit(number=2, steps=31))
    assert error["code"] == "FACILITY_REFUSES"
    assert "orders never change" in error["message"]
    assert facility.error(submit(steps=31))["code"] == "FACILITY_REFUSES"
    assert facility.data(submit(number=2))["job"] == "2"


def test_a_new_run_does_not_take_an_old_ones_orders(facility, submit):
    facility.data(submit(nonce="1700000000.25"))
    order = json.loads((facility.mail / f"orders/{ORDER}.json").read_text())
    assert order["nonce"] == "1700000000.25"
    assert facility.data(submit(nonce="1700000000.25"))["found"]
    error = facility.error(submit(nonce="1700000777.5"))
    assert error["code"] == "FACILITY_REFUSES"
    assert "orders never change" in error["message"]


def test_an_older_run_of_this_name(facility, submit):
    """Its mailbox was removed; its notes, and jobs that are over, don't count."""
    name = f"hansa.{RUN}.{KEY}"
    facility.data(submit(nonce="old"))
    shutil.rmtree(facility.site.mailbox)
    error = facility.error(submit(nonce="new"))
    assert "still in the queue" in error["message"]
    assert name in error["message"]
    assert "another run id" in error["hint"]
    shutil.rmtree(facility.site.mailbox)
    old = facility.batch.jobs["1"]
    old.update(state="DONE", submitted=time.time() - 3600)
    reply = facility.data(submit(nonce="new"))
    assert (reply["job"], reply["found"]) == ("2", False)
    assert facility.data(submit(nonce="new"))["found"]
    assert json.loads(facility.notes().job.read_text())["nonce"] == "new"


def test_a_job_of_old_with_no_notes_at_all(facility, submit):
    name = f"hansa.{RUN}.{KEY}"
    facility.batch.add(name, "DONE", submitted=time.time() - 3600)
    facility.batch.refuse = "come later"
    assert facility.error(submit())["transient"]
    facility.batch.refuse = ""
    assert facility.data(submit())["found"] is False


def test_a_live_job_of_this_name_is_adopted(facility, submit):
    """Such as when the folder of notes was lost or moved in the middle of a run."""
    facility.batch.add(f"hansa.{RUN}.{KEY}", "RUNNING", submitted=1.0)
    data = facility.data(submit())
    assert (data["job"], data["found"]) == ("1", True)
    assert facility.batch.submissions == 1


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_others_must_not_write_the_notes(facility, submit, mode):
    facility.site.state.mkdir()
    facility.site.state.chmod(mode)
    error = facility.error(submit())
    assert error["code"] == "FACILITY"
    assert f"chmod go-w {facility.site.state}" in error["hint"]
    assert facility.batch.submissions == 0
    facility.site.state.chmod(0o755)
    assert facility.data(submit())["job"] == "1"


def test_a_later_job_makes_room_for_its_update(facility, submit):
    """The server asks for job 2 when it could not accept what job 1 delivered."""
    facility.data(submit(number=1))
    update = facility.mail / "updates" / ORDER
    update.mkdir(parents=True)
    (update / "manifest.json").write_text('{"steps": 1}')
    facility.data(submit(number=1))
    assert update.exists()
    facility.data(submit(number=2))
    assert not update.exists()
    assert (
        facility.data(rpc.poll(RUN, [f"{ORDER}.2"]))["jobs"][f"{ORDER}.2"]["update"]
        is None
    )


def test_a_later_jobs_own_update_is_not_set_aside(facility, submit):
    """The agent was stopped before its note; the job is over and forgotten."""
    update = facility.mail / "updates" / ORDER
    facility.data(submit(number=1))
    facility.deliver(KEY)
    facility.data(submit(number=2))
    assert not update.exists()
    facility.notes(f"{ORDER}.2").submitted.unlink()
    facility.deliver(f"{ORDER}.2")
    facility.batch.jobs["2"]["state"] = "DONE"
    facility.batch.forgotten.add("2")
    facility.data(submit(number=2))
    assert (update / "manifest.json").exists()


def test_jobs_in_queue(facility, submit):
    facility.data(submit(number=1))
    facility.data(submit(number=2))
    error = facility.error(submit(number=3))
    assert "limits.jobs_in_queue" in error["message"]
    assert error["transient"]
    assert facility.data(submit(number=2))["found"]
    facility.batch.jobs["1"]["state"] = "DONE"
    assert facility.data(submit(number=3))["job"] == "3"


def test_a_refusal_of_the_scheduler(facility, submit):
    facility.batch.refuse = "sbatch: error: invalid account"
    error = facility.error(submit())
    assert (error["code"], error["transient"]) == ("SCHEDULER", False)
    assert "invalid account" in error["message"]
    facility.batch.refuse = ""
    assert facility.data(submit())["found"] is False


def test_unknown_trainers_and_too_large_orders_are_refused(facility, submit):
    model = {"trainer": "softmacks", "source": "zeros", "dtype": "float32"}
    error = facility.error(submit(model=model))
    assert "no trainer 'softmacks'" in error["message"]
    assert "softmax" in error["hint"]
    error = facility.error(submit(work={"x": "y" * 300_000}))
    assert "too large" in error["message"]
    assert facility.batch.submissions == 0


# --- jobs without an order ------------------------------------------------------------

AHEAD = "ahead-0001-polaris-1"


def test_a_job_is_placed_ahead(facility, place):
    job = {"linger": 30, "hold": 9, "queue": "debug"}
    data = facility.data(place(nonce="n1", job=job))
    name = f"hansa.{RUN}.{AHEAD}.1"
    assert data == {"job": "1", "name": name, "found": False}
    notes = facility.notes(f"{AHEAD}.1")
    told = json.loads(notes.job.read_text())
    assert (told["key"], told["order"], told["task"]) == (f"{AHEAD}.1", None, None)
    assert (told["linger_s"], told["ahead_s"], told["hold_s"]) == (30.0, 600.0, 0.0)
    assert (told["nonce"], told["queue"]) == ("n1", "debug")
    assert f"hansa.worker run {notes.job} --sha256" in notes.script.read_text()
    assert (facility.mail / "jobs" / f"{AHEAD}.1").is_dir()
    assert not (facility.mail / "orders").exists()
    assert facility.data(place(nonce="n1", job=job))["found"]
    assert facility.batch.submissions == 1


def test_a_trial_looks_around(facility, place):
    name = "trial-0001-polaris-1"
    facility.data(place(name, wait=0))
    notes = facility.notes(f"{name}.1")
    script = notes.script.read_text()
    assert f"hansa.worker trial {notes.job} --sha256" in script


@pytest.mark.parametrize("lost", ["answer", "note"])
def test_placing_twice_is_placing_once(facility, place, lost):
    facility.batch.lose_answer = lost == "answer"
    assert facility.data(place())["job"] == "1"
    if lost == "note":
        facility.notes(f"{AHEAD}.1").submitted.unlink()
    facility.batch.lose_answer = False
    assert facility.data(place()) == {
        "job": "1",
        "name": f"hansa.{RUN}.{AHEAD}.1",
        "found": True,
    }
    assert facility.batch.submissions == 1


def test_a_full_queue_takes_no_job_ahead(facility, submit, place):
    facility.data(submit(number=1))
    facility.data(submit(number=2))
    error = facility.error(place())
    assert "limits.jobs_in_queue" in error["message"]
    assert error["transient"]
    assert not facility.notes(f"{AHEAD}.1").path.exists()


def test_trials_of_two_checks_are_two(facility, place):
    name = "trial-0001-polaris-1"
    facility.data(place(name, nonce="a"))
    assert "still in the queue" in facility.error(place(name, nonce="b"))["message"]
    facility.batch.jobs["1"].update(state="DONE", submitted=time.time() - 3600)
    assert facility.data(place(name, nonce="b"))["job"] == "2"


@pytest.mark.parametrize("link", ["states", "states/c-a", "states/c-a/3"])
def test_a_state_behind_a_link_is_refused(facility, submit, tmp_path, link):
    (tmp_path / "outside").mkdir()
    (facility.mail / link).parent.mkdir(parents=True)
    (facility.mail / link).symlink_to(tmp_path / "outside")
    error = facility.error(submit(control="state/c-a/3"))
    assert error["code"] == "FACILITY_REFUSES"
    assert "leads out of the mailbox" in error["message"]
    assert facility.batch.submissions == 0
    assert (
        facility.data(submit())["job"] == "1"
    )  # an order without it is none the worse


def test_a_state_may_come_after_its_order(facility, submit):
    asked = {"control": "state/c-a/3", "proximal": 0.25, "lr_scale": 0.5, "first": 7}
    facility.data(submit(**asked))
    order = json.loads(facility.notes().job.read_text())["order"]
    assert {key: order[key] for key in asked} == asked
