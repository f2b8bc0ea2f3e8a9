import errno
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hansa
from hansa.core.errors import SchedulerError
from hansa.site import prepare, rpc

RUN = "smol"
ORDER = "train-0001-polaris-1"
KEY = f"{ORDER}.1"


@pytest.fixture
def submit(make_order):
    def make(number=1, job=None, dry_run=False, **fields):
        job = {"nodes": 2, "time": 100, **(job or {})}
        order = make_order(**fields)
        return rpc.submit(RUN, order, number, job, dry_run=dry_run)

    return make


def test_probe(facility):
    data = facility.data(rpc.probe())
    assert data["facility"] == "polaris"
    assert data["hansa"] == hansa.__version__
    assert data["scheduler"] == "local"
    assert data["tasks"] == ["digits"]
    assert data["free_bytes"] > 0
    assert abs(data["clock"] - time.time()) < 60
    problems = [problem["what"] for problem in data["problems"]]
    assert problems == [
        "The model 'llama' is not there: /models/llama.",
        "The model '/home/me/llama' is not there: /models/mine.",
    ]
    assert not facility.site.mailbox.exists()  # a probe writes nothing


def test_probe_tells_what_is_wrong(facility, tmp_path):
    (tmp_path / "file").touch()
    facility.use(
        mailbox=str(tmp_path / "file" / "mail"),
        models={},
        tasks={"digits": {"data": str(tmp_path / "none")}},
        environment={"python": "/no/python"},
    )

    def broken(command, timeout):
        raise SchedulerError("squeue is away", hint="call them")

    facility.agent._run = broken
    problems = facility.data(rpc.probe())["problems"]
    assert [problem["what"].split(":")[0] for problem in problems] == [
        f"The mailbox {tmp_path}/file/mail can't be made",
        "squeue is away",
        "The data of the task 'digits' is not there",
        "The interpreter /no/python can't be run.",
    ]
    assert all(problem["hint"] for problem in problems)


def test_an_unknown_scheduler_is_a_problem_not_a_crash(facility):
    facility.use(scheduler={"type": "lsf"}, models={})
    problems = facility.data(rpc.probe())["problems"]
    assert "There is no scheduler 'lsf'" in problems[0]["what"]


def test_submit_writes_order_job_and_script(facility, submit):
    data = facility.data(submit())
    name = f"hansa.{RUN}.{KEY}"
    assert data == {"job": "1", "name": name, "found": False}
    order = json.loads((facility.mail / f"orders/{ORDER}.json").read_text())
    assert order == submit()["order"]
    job = json.loads((facility.mail / f"jobs/{KEY}/job.json").read_text())
    assert job == {
        "schema": 1,
        "order": order,
        "number": 1,
        "facility": "polaris",
        "mailbox": str(facility.mail),
        "job_dir": str(facility.mail / "jobs" / KEY),
        "task": {
            "name": "digits",
            "source": None,
            "splits": ["ones"],
            "test_splits": None,
            "cache": str(facility.site.mailbox / ".cache"),
            "options": {"sites": 4, "x": 1},  # the site's word goes last
        },
        "modules": ["mylab.models:net"],
        "walltime_s": 100.0,
        "heartbeat_s": 1.0,
        "checkpoint_s": 30.0,
    }
    script = (facility.mail / f"jobs/{KEY}/script.sh").read_text()
    assert f"#HANSA name={name}\n#HANSA nodes=2\n#HANSA time=100\n" in script
    assert "#HANSA warning=20\n" in script
    assert "export OMP_NUM_THREADS=1\nexport PYTHONUNBUFFERED=1\n" in script
    path = facility.mail / f"jobs/{KEY}/job.json"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert script.endswith(
        f"exec {sys.executable} -P -m hansa.worker run {path} --sha256 {digest}\n"
    )


@pytest.mark.integration
def test_a_job_imports_nothing_from_its_directory(facility, submit, tmp_path):
    """Whoever may write the mailbox must not thereby run code in a job."""
    facility.data(submit())
    home, seen = facility.mail / "jobs" / KEY, tmp_path / "seen"
    for module in ("json", "numpy", "ml_dtypes", "hansa"):
        (home / f"{module}.py").write_text(f"open({str(seen)!r}, 'w').close()\n")
    script = (home / "script.sh").read_text()
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
    assert "12 copies" in facility.error(submit(job=job))["message"]
    assert facility.batch.submissions == 0
    # What will be started once a worker knows of others:
    ask = rpc.parse_request(submit(job=job))
    launch = prepare.job_spec(facility.site, ask).launch
    assert launch == "mpiexec -n 12 --ppn 4 -N 3"


def test_the_model_source_is_renamed_for_the_worker_only(facility, submit):
    model = {"trainer": "softmax", "source": "llama", "dtype": "float32"}
    facility.data(submit(model=model))
    order = json.loads((facility.mail / f"orders/{ORDER}.json").read_text())
    job = json.loads((facility.mail / f"jobs/{KEY}/job.json").read_text())
    assert order["model"]["source"] == "llama"
    assert job["order"]["model"]["source"] == "/models/llama"


def test_a_dry_run_checks_and_writes_nothing(facility, submit):
    data = facility.data(submit(dry_run=True))
    assert (data["job"], data["found"]) == (None, False)
    assert data["script"].startswith("#!/bin/sh\n")
    assert not facility.site.mailbox.exists()
    assert facility.batch.asked == facility.batch.submissions == 0
    error = facility.error(submit(dry_run=True, job={"nodes": 9}))
    assert error["code"] == "FACILITY_REFUSES"


def test_submitting_twice_submits_once(facility, submit):
    first, second = facility.data(submit()), facility.data(submit())
    assert (first["found"], second["found"]) == (False, True)
    assert second["job"] == first["job"]
    assert facility.batch.submissions == 1


def test_a_submission_whose_answer_was_lost_is_found_by_name(facility, submit):
    facility.batch.lose_submit_answer = True
    error = facility.error(submit())
    assert (error["code"], error["transient"]) == ("SCHEDULER", True)
    facility.batch.lose_submit_answer = False
    data = facility.data(submit())
    assert (data["job"], data["found"]) == ("1", True)
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

    def slow(command, timeout):
        if "submit" in command:
            at_work.set()
            assert go_on.wait(20)
        return batch(command, timeout)

    facility.agent._run = slow

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
    facility.batch.refuse = "Socket timed out on send/recv operation"
    assert facility.error(submit())["transient"]
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


def test_poll(facility, submit):
    facility.data(submit())
    other = "train-0002-polaris-1.1"
    empty = {"scheduler": None, "status": None, "bound": None, "update": None}
    asked = facility.batch.asked
    jobs = facility.data(rpc.poll(RUN, [KEY, other]))["jobs"]
    assert facility.batch.asked == asked + 1  # one question for all
    assert jobs[other] == empty
    assert jobs[KEY] == {**empty, "scheduler": jobs[KEY]["scheduler"]}
    assert jobs[KEY]["scheduler"]["state"] == "QUEUED"
    home = facility.mail / "jobs" / KEY
    (home / "status.json").write_text('{"phase": "training"}')
    (home / "bound.json").write_text('{"base": 3}')
    update = facility.mail / "updates" / ORDER
    update.mkdir(parents=True)
    (update / "manifest.json").write_text('{"steps": 30}')
    job = facility.data(rpc.poll(RUN, [KEY]))["jobs"][KEY]
    assert job["status"] == {"phase": "training"}
    assert job["bound"] == {"base": 3}
    assert job["update"] == {"steps": 30}


def test_poll_nothing_asks_nobody(facility):
    assert facility.data(rpc.poll(RUN, [])) == {"jobs": {}}
    assert facility.batch.asked == 0


def test_one_damaged_file_does_not_hide_the_others(facility, submit):
    facility.data(submit())
    home = facility.mail / "jobs" / KEY
    (home / "status.json").write_text("{")
    (home / "bound.json").write_text('{"base": 3}')
    job = facility.data(rpc.poll(RUN, [KEY]))["jobs"][KEY]
    assert (job["status"], job["bound"]) == (None, {"base": 3})
    assert "status.json is not JSON" in job["problems"][0]


def test_cancel_is_idempotent(facility, submit):
    facility.data(submit())
    request = rpc.cancel(RUN, [KEY, "train-0002-polaris-1.1"])
    assert facility.data(request) == {"cancelled": [KEY]}
    assert facility.batch.jobs["1"]["state"] == "CANCELLED"
    assert facility.data(request) == {"cancelled": []}
    assert facility.data(rpc.cancel(RUN, [])) == {"cancelled": []}


def test_read_returns_the_end_of_a_file(facility, submit):
    facility.data(submit())
    log = facility.mail / "jobs" / KEY / "log.txt"
    log.write_bytes(b"x" * 100_000 + "end ü\xff\n".encode("latin-1"))
    text = facility.data(rpc.read(RUN, f"jobs/{KEY}/log.txt", 8))["text"]
    assert text == "xend \ufffd\ufffd\n"
    assert len(facility.data(rpc.read(RUN, f"jobs/{KEY}/log.txt"))["text"]) == 65536
    error = facility.error(rpc.read(RUN, "jobs/none"))
    assert "No such file" in error["message"]


@pytest.fixture
def secret(facility, submit):
    facility.data(submit())
    path = facility.root / "secret.txt"
    path.write_text("TOP SECRET")
    return path


@pytest.mark.parametrize(
    "path",
    [
        "../../secret.txt",
        "jobs/../../../secret.txt",
        "/etc/passwd",
        "jobs/x/\0",
        ".hidden",
        "jobs/link",
        "jobs/dirlink/secret.txt",
        "jobs",
        "jobs/pipe",
    ],
)
def test_path_attacks(facility, secret, path):
    jobs = facility.mail / "jobs"
    (jobs / "link").symlink_to(secret)
    (jobs / "dirlink").symlink_to(secret.parent)
    (facility.mail / ".hidden").write_text("TOP SECRET")
    os.mkfifo(jobs / "pipe")
    error = facility.error(rpc.read(RUN, path))
    assert error["code"] in ("FACILITY", "FACILITY_REFUSES")
    assert "TOP SECRET" not in json.dumps(error)


@given(path=st.text(st.sampled_from("./ab\0~secret.txt"), min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_reads_a_secret(facility, secret, path):
    reply = facility.ask(rpc.read(RUN, path))
    assert "TOP SECRET" not in json.dumps(reply)


def test_a_mailbox_that_is_a_link_elsewhere_is_refused(facility, submit):
    outside = facility.root / "outside"
    outside.mkdir()
    facility.site.mailbox.mkdir()
    facility.mail.symlink_to(outside)
    assert facility.error(submit())["code"] == "FACILITY_REFUSES"
    facility.mail.unlink()
    facility.mail.mkdir()
    (facility.mail / "jobs").symlink_to(outside)
    assert facility.error(submit())["code"] == "FACILITY_REFUSES"
    assert list(outside.iterdir()) == []


def test_linked_status_files_are_not_served(facility, secret):
    secret.write_text('{"secret": "TOP SECRET"}')
    (facility.mail / "jobs" / KEY / "status.json").symlink_to(secret)
    reply = facility.ask(rpc.poll(RUN, [KEY]))
    assert "TOP SECRET" not in json.dumps(reply)


def test_huge_status_files_are_not_served(facility, submit):
    facility.data(submit())
    path = facility.mail / "jobs" / KEY / "status.json"
    path.write_text('{"x": "' + "y" * 5_000_000 + '"}')
    job = facility.data(rpc.poll(RUN, [KEY]))["jobs"][KEY]
    assert job["status"] is None
    assert "too large" in job["problems"][0]


def versions(facility, *numbers):
    for number in numbers:
        home = facility.mail / "versions" / str(number)
        home.mkdir(parents=True)
        (home / "manifest.json").write_text("{}")
        (home / "model-00001.safetensors").write_bytes(b"x")
        (home / "model-00001.safetensors").chmod(0o444)


def test_tidy(facility):
    versions(facility, *range(8))
    answer = {"removed": [0, 1, 3, 4, 5], "collected": []}
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


@pytest.mark.parametrize(
    "name", ["versions/.1.x", f"updates/.refused-{ORDER}.2", f"updates/.{ORDER}.1f"]
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


OTHER = "train-0001-polaris-10"


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
    answer = {"removed": [], "collected": [ORDER, "train-0009-polaris-1"]}
    for _ in range(2):
        assert facility.data(request) == answer
        assert before - files(facility) == gone
    assert not (facility.mail / "updates" / ORDER).exists()
    assert not (facility.mail / "jobs" / KEY / "checkpoint").exists()


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
    assert facility.batch.asked == 0


@pytest.mark.parametrize("link", ["versions", "updates", f"jobs/{KEY}"])
def test_tidy_removes_nothing_outside(facility, tmp_path, link):
    outside = tmp_path / "outside"
    for name in (f"{ORDER}", "checkpoint", ".cache", *"0123"):
        (outside / name).mkdir(parents=True)
        (outside / name / "manifest.json").touch()
        os.utime(outside / name, (0, 0))
    before = sorted(outside.rglob("*"))
    (facility.mail / link).parent.mkdir(parents=True)
    (facility.mail / link).symlink_to(outside)
    error = facility.error(rpc.tidy(RUN, [], [ORDER]))
    assert error["code"] == "FACILITY_REFUSES"
    assert sorted(outside.rglob("*")) == before


def test_a_broken_disk_is_an_error_not_a_crash(facility, submit):
    facility.site.mailbox.parent.mkdir(exist_ok=True)
    facility.site.mailbox.write_text("a file")
    error = facility.error(submit())
    assert error["code"] == "FACILITY"
    assert "mailbox" in error["hint"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_mailbox_is_the_facilitys_trouble(facility, submit, monkeypatch, number):
    def full(handle):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        error = facility.error(submit())
    assert error["code"] == "FACILITY"
    assert "No space is left" in error["message"]
    assert "quota" in error["hint"]
    assert facility.data(submit())["found"] is False


def test_a_damaged_order_is_the_facilitys_trouble(facility, submit):
    facility.data(submit())
    (facility.mail / f"orders/{ORDER}.json").write_text("{")
    error = facility.error(submit())
    assert error["code"] == "FACILITY"
    assert "is not JSON" in error["message"]


def test_a_bug_is_an_error_not_a_crash(facility, submit, caplog):
    def bug(command, timeout):
        raise ZeroDivisionError

    facility.agent._run = bug
    error = facility.error(submit())
    assert "ZeroDivisionError" in error["message"]
    assert "bug in Hansa" in error["hint"]
    assert "a request failed" in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=6,
)


@given(
    op=st.sampled_from(["probe", "submit", "poll", "cancel", "read", "tidy", "x"]),
    fields=st.dictionaries(
        st.sampled_from(["run", "jobs", "path", "keep", "order", "number", "job"]), JSON
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_request_gets_a_reply(facility, op, fields):
    reply = facility.ask({"schema": 1, "op": op, **fields})
    assert reply["schema"] == 1
    assert set(reply) == {"schema", "ok", "data" if reply["ok"] else "error"}
