"""What every batch driver must do. A new one is one more entry of DRIVERS.

The pure part needs a driver and samples of its status output. The living part needs
a batch system on this host: the local queue, a worker like that of a block, a real
Slurm cluster, and an emulator of PBS over one.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from batch_samples import new_slurm_job, pbs_job, qstat, squeue
from block_worker import worker_in
from hypothesis import given
from hypothesis import strategies as st
from pbs import PbsServer
from pydantic import BaseModel, ValidationError
from slurm import Cluster, require_slurm
from talking import Talk, failed

from hansa.core import plugins
from hansa.core.errors import SchedulerError
from hansa.scheduler.base import Answer, JobSpec, JobState, JobStatus, Scheduler
from hansa.site.batch import Batch, run_command


@contextmanager
def local_queue(root: Path) -> Iterator[dict]:
    yield {"slots": 2}
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(int((root / "queue" / "daemon.pid").read_text()), signal.SIGTERM)


@contextmanager
def block_of_nodes(root: Path) -> Iterator[dict]:
    with worker_in(root / "block"):
        yield {"nodes": 2}


@contextmanager
def slurm_cluster(root: Path) -> Iterator[dict]:
    require_slurm()
    with Cluster(root, "alpha", nodes=2) as cluster:
        yield {"conf": str(cluster.conf)}


@contextmanager
def pbs_server(root: Path) -> Iterator[dict]:
    require_slurm()
    with PbsServer(root, "pbs", nodes=2) as server:
        yield server.options


@dataclass
class Case:
    """A driver under test.

    Attributes:
        live: Starts its batch system below a directory; gives the driver's options.
        strange: Status output with one job, id `ident`, in a state that nobody knows.
        ident: An id in this system's form.
        unknown: An id that its server does not know.
        options: Options of the driver without a batch system.
        whole: The site's directives by which jobs get nodes of their own.
        tries: In how many ways it asks for the jobs before it gives up.
    """

    live: Callable
    strange: str
    ident: str = "7"
    unknown: str = "999999"
    options: dict = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    tries: int = 1


DRIVERS = {
    "block": Case(
        live=block_of_nodes,
        options={"nodes": 2},
        strange='{"jobs": [{"id": "7", "name": "x", "state": "SULKING"}]}',
    ),
    "local": Case(
        live=local_queue,
        options={"slots": 2},
        strange='{"jobs": [{"id": "7", "name": "x", "state": "SULKING"}]}',
    ),
    "slurm": Case(
        live=slurm_cluster,
        options={"user": "me"},
        strange=squeue(new_slurm_job(job_state=["SULKING"])),
        whole=("--exclusive",),
        tries=2,
    ),
    "pbs": Case(
        live=pbs_server,
        options={"user": "me"},
        strange=qstat(j7=pbs_job(job_state="?")),
        ident="7.pbs",
        unknown="999999.pbs",
        tries=3,
    ),
}


def build(name: str, root: Path, options: dict | None = None) -> Scheduler:
    kind = plugins.find(plugins.SCHEDULERS, name)
    said = DRIVERS[name].options if options is None else options
    return kind(kind.Options.model_validate(said), root)


def job(root: Path, name: str, shell: str, **fields) -> JobSpec:
    usual = {
        "name": f"hansa.r.{name}",
        "nodes": 1,
        "time_s": 120.0,
        "command": ["/bin/sh", "-c", shell],
        "directory": root,
        "log": root / f"{name}.log",
        "warning_s": 24.0,
    }
    return JobSpec(**{**usual, **fields})


@pytest.fixture(params=sorted(DRIVERS))
def name(request):
    return request.param


@pytest.fixture
def driver(name, tmp_path):
    return build(name, tmp_path)


def test_options_are_a_strict_model(name):
    model = plugins.find(plugins.SCHEDULERS, name).Options
    assert issubclass(model, BaseModel)
    with pytest.raises(ValidationError):
        model.model_validate({"no_such_option": 1})


def test_render_is_pure(driver, tmp_path):
    spec = job(tmp_path, "train-0001-a-1.1", "true", variables={"A": "b c"})
    script = driver.render(spec)
    assert script == driver.render(spec)
    assert script.startswith("#!")
    assert spec.name in script
    assert "'b c'" in script
    assert list(tmp_path.iterdir()) == []


def test_setup_and_launch_come_as_the_site_wrote_them(driver, tmp_path):
    spec = job(
        tmp_path, "x", "true", setup=("module load a && b",), launch="srun -n $N"
    )
    script = driver.render(spec)
    assert "\nmodule load a && b\n" in script
    assert "srun -n $N /bin/sh -c true --attempt" in script


def test_no_name_breaks_out_of_a_script(driver, tmp_path):
    with pytest.raises(SchedulerError):
        driver.render(job(tmp_path, "x", "true", log=tmp_path / "a\nrm -rf x"))
    with pytest.raises(SchedulerError):
        driver.render(job(tmp_path, "x", "true", variables={"A=1;B": "x"}))


def test_commands_are_argument_lists(name, driver, tmp_path):
    ident = DRIVERS[name].ident
    commands = [
        next(driver.submit(tmp_path / "s.sh")),
        next(driver.accepts(tmp_path / "s.sh")),
        next(driver.jobs()),
        next(driver.jobs([ident])),
        next(driver.cancel([ident])),
    ]
    for command in commands:
        assert isinstance(command, list)
        assert all(isinstance(word, str) and word for word in command)
    assert str(tmp_path / "s.sh") in commands[0]
    assert ident in commands[4]
    assert list(tmp_path.iterdir()) == []


def test_a_strange_state_is_unknown_and_not_final(name, driver):
    jobs = Talk(DRIVERS[name].strange).hold(driver.jobs())
    assert jobs[DRIVERS[name].ident].state is JobState.UNKNOWN
    assert not jobs[DRIVERS[name].ident].state.final


def told(steps, answer: Answer):
    """Return the result of a conversation in which every command answers the same."""
    try:
        next(steps)
        for _ in range(20):
            steps.send(answer)
    except StopIteration as done:
        return done.value
    pytest.fail("the conversation does not end")


@pytest.mark.parametrize("name", sorted(DRIVERS))
@given(
    code=st.integers(0, 255),
    out=st.text() | st.from_regex(r'\{"jobs": ?[\[{].{0,20}\}'),
    err=st.text(),
)
def test_any_output_is_read_or_refused(name, code, out, err):
    driver, answer = build(name, Path("/none")), Answer(code, out, err)
    for steps in (
        driver.jobs(["7"]),
        driver.submit(Path("/s")),
        driver.accepts(Path("/s")),
        driver.cancel(["7"]),
    ):
        with suppress(SchedulerError):
            result = told(steps, answer)
            if isinstance(result, dict):
                assert all(key == one.id for key, one in result.items())
            elif result is not None:
                assert isinstance(result, str)


@pytest.mark.parametrize("name", sorted(DRIVERS))
@given(data=st.data())
def test_damaged_output_is_read_or_refused(name, data):
    driver, text = build(name, Path("/none")), DRIVERS[name].strange
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    junk = data.draw(st.sampled_from(["", "null", "[]", '"', "1e999", "NaN", "\0"]))
    with suppress(SchedulerError):
        jobs = told(driver.jobs(), Answer(0, text[:start] + junk + text[end:]))
        assert all(isinstance(job, JobStatus) for job in jobs.values())


def test_a_status_that_fails_is_an_error(name, driver):
    answers = [failed("the server is on fire")] * DRIVERS[name].tries
    with pytest.raises(SchedulerError, match="is on fire"):
        Talk(*answers).hold(driver.jobs())


def test_a_status_survives_its_json(name, driver):
    for status in Talk(DRIVERS[name].strange).hold(driver.jobs()).values():
        again = json.loads(json.dumps(status.to_json()))
        assert JobStatus.from_json(again) == status


# --- with a batch system ------------------------------------------------------------


class Live:
    def __init__(self, driver: Scheduler, root: Path) -> None:
        self.driver, self.root, self.batch = driver, root, Batch(driver)

    def script(self, name: str, shell: str, **fields) -> Path:
        script = self.root / f"{name}.sh"
        script.write_text(self.driver.render(job(self.root, name, shell, **fields)))
        return script

    def submit(self, name: str, shell: str, **fields) -> str:
        return self.batch.submit(self.script(name, shell, **fields))

    def until(self, ident: str, holds: Callable[[JobStatus], bool]) -> JobStatus:
        end = time.monotonic() + 90
        while not holds(status := self.batch.jobs([ident])[ident]):
            assert time.monotonic() < end, f"not in time: {status}"
            time.sleep(0.1)
        return status


@pytest.fixture
def live(name, tmp_path):
    with DRIVERS[name].live(tmp_path) as options:
        yield Live(build(name, tmp_path, options), tmp_path)


@pytest.mark.integration
def test_a_job_is_found_by_name_and_ends_well(live, tmp_path):
    assert live.batch.jobs() == {}
    ident = live.submit("train-0001-a-1.1", "echo $WORD", variables={"WORD": "a 'b'"})
    jobs = live.batch.jobs()
    assert jobs[ident].name == "hansa.r.train-0001-a-1.1"
    done = live.until(ident, lambda status: status.state.final)
    assert (done.state, done.exit_code, done.nodes) == (JobState.DONE, 0, 1)
    assert done.submitted <= done.started <= done.ended
    assert done.eligible <= done.started
    assert done.limit_s == 120
    assert (tmp_path / "train-0001-a-1.1.log").read_text() == "a 'b'\n"


@pytest.mark.integration
def test_a_job_that_fails_says_how(live, tmp_path):
    ident = live.submit("train-0001-a-1.1", 'echo "$0 $1"; exit 9')
    done = live.until(ident, lambda status: status.state.final)
    assert (done.state, done.exit_code) == (JobState.FAILED, 9)
    assert done.reason
    assert done.why
    word, attempt = (tmp_path / "train-0001-a-1.1.log").read_text().split()
    assert word == "--attempt"
    assert int(attempt.partition("-")[0]) > 0


@pytest.mark.integration
def test_cancelling_is_idempotent(name, live):
    ident = live.submit("train-0001-a-1.1", "sleep 300")
    live.until(ident, lambda status: status.state is JobState.RUNNING)
    live.batch.cancel([ident])
    done = live.until(ident, lambda status: status.state.final)
    assert done.state is JobState.CANCELLED
    live.batch.cancel([ident, DRIVERS[name].unknown])
    assert live.batch.jobs([ident])[ident] == done


@pytest.mark.integration
def test_a_submission_that_was_not_answered_in_time_is_found_by_its_name(live):
    def too_late(command, timeout):
        run_command(command, timeout)
        raise SchedulerError("it has not answered", transient=True)

    script = live.script("train-0001-a-1.1", "true")
    with pytest.raises(SchedulerError, match="not answered"):
        Batch(live.driver, too_late).submit(script)
    names = [job.name for job in live.batch.jobs().values()]
    assert names == ["hansa.r.train-0001-a-1.1"]


@pytest.mark.integration
def test_asking_whether_a_job_is_accepted_leaves_no_job(live):
    said = live.batch.accepts(live.script("train-0001-a-1.1", "true"))
    assert said.endswith(".") or "to start at" in said
    jobs = live.batch.jobs().values()
    assert all(job.state is JobState.CANCELLED for job in jobs)
    assert "hansa.r.train-0001-a-1.1" not in {job.name for job in jobs}


@pytest.mark.integration
def test_jobs_that_wait_say_why(name, live):
    wide = {"nodes": 2, "directives": DRIVERS[name].whole}
    first = live.submit("train-0001-a-1.1", "sleep 300", **wide)
    live.until(first, lambda status: status.state is JobState.RUNNING)
    second = live.submit("train-0002-a-1.1", "true", **wide)
    waiting = live.until(second, lambda status: bool(status.why))
    assert waiting.state is JobState.QUEUED
    assert (waiting.started, waiting.ended) == (None, None)
    live.batch.cancel([first, second])
    gone = live.until(second, lambda status: status.state.final)
    assert (gone.state, gone.started) == (JobState.CANCELLED, None)
    live.until(first, lambda status: status.state.final)
