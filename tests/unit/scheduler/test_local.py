import json
import math
import statistics
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hansa.core.errors import SchedulerError
from hansa.scheduler.base import JobSpec, JobState, JobStatus
from hansa.scheduler.local import LocalOptions, LocalScheduler, Wait


def driver(**options):
    return LocalScheduler(LocalOptions(**options), Path("/mail"))


def spec(**fields):
    usual = {
        "name": "hansa.r.train-0001-a-1.1",
        "nodes": 1,
        "time_s": 90.0,
        "command": ["python", "-m", "hansa.worker", "run", "/m/it's/job.json"],
        "directory": Path("/m/j"),
        "log": Path("/m/j/log.txt"),
        "warning_s": 18.0,
    }
    return JobSpec(**{**usual, **fields})


def test_script():
    script = driver().render(
        spec(
            setup=("module load conda", "conda activate x"),
            variables={"A": "1", "B": "two words; rm -rf $HOME"},
            launch="mpiexec -n 4",
        )
    )
    assert script == (
        "#!/bin/sh\n"
        "#HANSA name=hansa.r.train-0001-a-1.1\n"
        "#HANSA nodes=1\n"
        "#HANSA time=90\n"
        "#HANSA warning=18\n"
        "#HANSA log=/m/j/log.txt\n"
        "#HANSA directory=/m/j\n"
        "module load conda\n"
        "conda activate x\n"
        "export A=1\n"
        "export B='two words; rm -rf $HOME'\n"
        "exec mpiexec -n 4 python -m hansa.worker run '/m/it'\"'\"'s/job.json'\n"
    )


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text()))
def test_variables_reach_the_job_as_they_are(values):
    values = {
        f"HANSA_T_{name}": text.replace("\0", "").encode(errors="ignore").decode()
        for name, text in values.items()
    }
    script = driver().render(spec(variables=values, command=["env", "-0"]))
    done = subprocess.run(
        ["/bin/sh"], input=script.encode(), capture_output=True, check=True
    )
    seen = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    assert {name: seen[name] for name in values} == values


@pytest.mark.parametrize("name", ["A B", "1A", "A;B", "", "Ä"])
def test_bad_variable_names_are_refused(name):
    with pytest.raises(SchedulerError, match="name of a variable"):
        driver().render(spec(variables={name: "x"}))


def test_a_line_break_in_a_directive_is_refused():
    with pytest.raises(SchedulerError, match="one line"):
        driver().render(spec(log=Path("/m/a\n#HANSA nodes=9")))


def test_more_nodes_than_slots_are_refused():
    with pytest.raises(SchedulerError, match=r"asks for 3 nodes; .* has 2 slots"):
        driver(slots=2).render(spec(nodes=3))


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError):
        LocalOptions.model_validate({"slot": 2})
    with pytest.raises(ValidationError):
        LocalOptions.model_validate({"slots": 0})


def test_commands():
    one = driver(slots=3)
    submit = one.submit_command(Path("/m/j/script.sh"))
    assert submit[-6:] == ["submit", "--dir", "/mail/.queue", "--slots", "3",
                           "/m/j/script.sh"]  # fmt: skip
    assert one.cancel_command(["3", "4"])[-3:] == ["--", "3", "4"]
    own = driver(directory=Path("/elsewhere"))
    assert "/elsewhere" in own.status_command(None)


def test_parse_submit():
    assert driver().parse_submit("17\n") == "17"
    for text in ("", "job 17", "1 2", "٣"):
        with pytest.raises(SchedulerError, match="not a job id"):
            driver().parse_submit(text)


def test_parse_status():
    text = json.dumps(
        {
            "schema": 1,
            "jobs": [
                {"id": "1", "name": "a", "state": "DONE", "submitted": 1.0,
                 "started": 2.0, "ended": 4.5, "nodes": 2, "exit_code": 0,
                 "reason": "", "script": "more is ignored"},
                {"id": "2", "name": "b", "state": "DANCING"},
            ],
        }
    )  # fmt: skip
    assert driver().parse_status(0, text, "") == {
        "1": JobStatus(
            id="1",
            name="a",
            state=JobState.DONE,
            submitted=1.0,
            started=2.0,
            ended=4.5,
            nodes=2,
            exit_code=0,
        ),
        "2": JobStatus(id="2", name="b", state=JobState.UNKNOWN),
    }
    assert driver().parse_status(0, "", "") == {}


def test_a_failed_status_says_why():
    with pytest.raises(SchedulerError, match="no such disk"):
        driver().parse_status(1, "", "no such disk\n")


def test_waits_are_lognormal_and_fixed_by_the_name():
    wait = Wait(mean=100, sigma=0.8, seed=4)
    waits = [wait.of(f"hansa.r.train-{n:04d}-a-1.1") for n in range(4000)]
    assert waits[7] == wait.of("hansa.r.train-0007-a-1.1")
    assert waits[7] != Wait(mean=100, sigma=0.8, seed=5).of("hansa.r.train-0007-a-1.1")
    logs = [math.log(value) for value in waits]
    assert statistics.mean(waits) == pytest.approx(100, rel=0.05)
    assert statistics.mean(logs) == pytest.approx(math.log(100) - 0.32, abs=0.05)
    assert statistics.stdev(logs) == pytest.approx(0.8, rel=0.05)
    assert Wait(mean="2m", sigma=0).of("x") == 120
    assert Wait(mean=0).of("x") == 0


def test_a_wait_stands_in_the_script():
    script = driver(wait={"mean": 3, "sigma": 0}).render(spec())
    assert "#HANSA wait=3.000\n" in script


def test_job_states():
    final = {state.value for state in JobState if state.final}
    assert final == {"DONE", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
    assert JobState.of("RUNNING") is JobState.RUNNING
    assert JobState.of(None) is JobState.UNKNOWN


@given(
    st.builds(
        JobStatus,
        id=st.text(),
        name=st.text(),
        state=st.sampled_from(JobState),
        submitted=st.none() | st.floats(0, 1e10),
        started=st.none() | st.floats(0, 1e10),
        ended=st.none() | st.floats(0, 1e10),
        nodes=st.integers(1, 9999),
        exit_code=st.none() | st.integers(-64, 255),
        reason=st.text(),
    )
)
def test_a_status_survives_json(status):
    assert JobStatus.from_json(json.loads(json.dumps(status.to_json()))) == status


@pytest.mark.parametrize(
    "data", [{}, {"id": "1", "nodes": "x"}, {"id": 1, "ended": {}}]
)
def test_a_wrong_status_is_refused(data):
    with pytest.raises(SchedulerError, match="job status"):
        JobStatus.from_json(data)
