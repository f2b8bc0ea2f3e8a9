import os
import sys
import time

import pytest

import hansa
from hansa.core.errors import SchedulerError
from hansa.site import health, rpc


def problems(facility):
    return [one["what"] for one in facility.data(rpc.probe())["problems"]]


def test_a_probe_says_what_the_facility_is(facility):
    facility.use(
        models={},
        node={"gpus": 4, "gpu_memory": "40GB", "ranks": 4},
        limits={"nodes": 8, "linger": "10m"},
        poll={"first": 5},
    )
    data = facility.data(rpc.probe())
    assert data["facility"] == "polaris"
    assert data["hansa"] == hansa.__version__
    assert data["scheduler"] == "local"
    assert data["tasks"] == ["digits"]
    assert data["free_bytes"] > 0
    assert abs(data["clock"] - time.time()) < 60
    assert data["pace"] == {"first": 5.0, "longest": 10.0}
    assert data["node"] == {"gpus": 4, "gpu_memory": 40 * 10**9, "ranks": 4}
    assert data["limits"] == {
        "nodes": 8,
        "time": None,
        "jobs_in_queue": None,
        "linger": 600.0,
        "queue_ahead": None,
    }
    assert data["problems"] == []
    assert data["notes"] == []
    assert list(facility.root.iterdir()) == []  # nothing stays


def test_models_must_be_there(facility):
    assert problems(facility) == [
        "The model 'llama' is not there: /models/llama.",
        "The model '/home/me/llama' is not there: /models/mine.",
    ]


def test_a_probe_tells_what_is_wrong(facility, tmp_path):
    (tmp_path / "file").touch()
    facility.use(
        mailbox=str(tmp_path / "file" / "mail"),
        state=str(tmp_path / "file" / "own"),
        models={},
        tasks={"digits": {"data": str(tmp_path / "none")}},
        environment={"python": "/no/python"},
    )
    facility.batch.away = SchedulerError("squeue is away", hint="call them")
    found = facility.data(rpc.probe())["problems"]
    assert [problem["what"].split(":")[0] for problem in found] == [
        f"The mailbox {tmp_path}/file/mail can't be made",
        f"The folder `state` {tmp_path}/file/own can't be made",
        "squeue is away",
        "The data of the task 'digits' is not there",
        "The interpreter /no/python can't be run.",
    ]
    assert all(problem["hint"] for problem in found)


def test_a_mailbox_that_only_looks_writable(facility, monkeypatch):
    facility.use(models={})
    facility.site.mailbox.mkdir()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = facility.data(rpc.probe())["problems"]
    assert found[0]["what"] == (
        f"The mailbox {facility.site.mailbox} can't be written: No space left on "
        "device."
    )
    assert "`mailbox`" in found[0]["hint"]
    assert list(facility.site.mailbox.iterdir()) == []


def test_notes_that_others_can_write(facility):
    facility.use(models={})
    facility.site.state.mkdir()
    facility.site.state.chmod(0o777)
    (found,) = facility.data(rpc.probe())["problems"]
    assert "Other users can write" in found["what"]
    assert "chmod go-w" in found["hint"]


def test_an_unknown_scheduler_is_a_problem_not_a_crash(facility):
    facility.use(scheduler={"type": "lsf"}, models={})
    assert "There is no scheduler 'lsf'" in problems(facility)[0]


def test_probes_are_polite_too(facility, submit):
    facility.use(models={}, poll={"first": 1000, "longest": 1000})
    facility.data(submit())
    asked = len(facility.batch.asked)
    for _ in range(3):
        assert problems(facility) == []
    assert len(facility.batch.asked) == asked


# --- the environment of a job ---------------------------------------------------------


def look(make_site, limit_s=60.0, **environment):
    site = make_site(environment={"python": sys.executable, **environment})
    return health.environment(site, limit_s=limit_s)


def test_the_agents_own_python_is_not_tried(make_site):
    assert health.environment(make_site()) == health.Report()


def test_the_environment_of_a_job(make_site, tmp_path):
    report = look(make_site, setup=["set -- a b; echo loading", f"cd {tmp_path}"])
    assert report.problems == ()
    (note,) = report.notes
    assert f"with hansa {hansa.__version__}" in note


def test_setup_may_bring_python(make_site, tmp_path):
    python = tmp_path / "bin" / "python9"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    setup = [f'export PATH="{tmp_path}/bin:$PATH"']
    assert look(make_site, python="python9", setup=setup).notes
    ((what, hint),) = look(make_site, python="python9").problems
    assert "python9" in what
    assert "`environment`" in hint


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (["export PYTHONHOME=/nowhere"], "worker: "),
        (["echo conda is broken >&2; exit 3"], "worker: conda is broken"),
        (["exit 3"], "worker: exit code 3"),
        (["if"], "worker: "),
    ],
)
def test_an_environment_that_fails(make_site, setup, said):
    ((what, hint),) = look(make_site, setup=setup).problems
    assert said in what
    assert "`setup`" in hint


def test_another_hansa(make_site, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'["0.0.1", "3.11.0"]\'\n')
    python.chmod(0o755)
    ((what, hint),) = look(make_site, python=str(python)).problems
    assert "hansa 0.0.1" in what
    assert "same version" in hint


def test_an_environment_that_hangs_is_left(make_site, tmp_path):
    pid = tmp_path / "pid"
    report = look(make_site, 3.0, setup=[f"echo $$ > {pid}", "exec sleep 60"])
    assert report.problems == ()
    assert "longer than 3 s" in report.notes[0]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_variables_are_set(make_site):
    variables = {"PYTHONPATH": "/nowhere", "WORD": "a b"}
    setup = ['test "$WORD" = "a b" && test "$OMP_NUM_THREADS" = 1']
    setup.append("|| exit 9")
    report = look(make_site, setup=[" ".join(setup)], variables=variables)
    assert report.problems == ()


def test_it_is_tried_once(facility, tmp_path):
    count = tmp_path / "count"
    setup = [f"echo x >> {count}"]
    facility.use(models={}, environment={"python": sys.executable, "setup": setup})
    for _ in range(2):
        assert "Jobs run Python" in facility.data(rpc.probe())["notes"][0]
    assert count.read_text() == "x\n"


def test_the_shell_is_that_of_the_batch_scripts(make_site, facility, tmp_path):
    assert health.shell_of(facility.agent._scheduler, tmp_path) == ("/bin/sh",)
    site = make_site(environment={"python": sys.executable, "setup": ["[[ a == a ]]"]})
    assert health.environment(site, ("/bin/bash", "--noprofile"), 60.0).notes

    class Login:
        def render(self, job):
            return "#!/bin/bash -l\n"

    assert health.shell_of(Login(), tmp_path) == ("/bin/bash", "-l")
