"""What every batch driver must do. A new one is one more entry of DRIVERS.

The pure part needs a driver and samples of its status output. The living part needs
a batch system on this host; drivers without one leave `live` False.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hansa.core import plugins
from hansa.core.errors import SchedulerError
from hansa.scheduler.base import JobSpec, JobState, JobStatus, Scheduler
from hansa.site.batch import Batch


def stop_local_queue(root: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(int((root / ".queue" / "daemon.pid").read_text()), signal.SIGTERM)


@dataclass
class Case:
    """A driver under test.

    Attributes:
        options: Its options.
        strange: Status output with one job, id "7", in a state that nobody knows.
        live: Whether its batch system is there.
        stop: Ends what the living tests started below a directory.
    """

    options: dict = field(default_factory=dict)
    strange: str = ""
    live: bool = False
    stop: Callable[[Path], None] = lambda root: None


DRIVERS = {
    "local": Case(
        options={"slots": 2},
        strange='{"jobs": [{"id": "7", "name": "x", "state": "SULKING"}]}',
        live=True,
        stop=stop_local_queue,
    )
}


def build(name: str, root: Path) -> Scheduler:
    kind = plugins.find(plugins.SCHEDULERS, name)
    return kind(kind.Options.model_validate(DRIVERS[name].options), root)


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
    assert "srun -n $N /bin/sh -c true" in script


def test_no_name_breaks_out_of_a_script(driver, tmp_path):
    with pytest.raises(SchedulerError):
        driver.render(job(tmp_path, "x", "true", log=tmp_path / "a\nrm -rf x"))
    with pytest.raises(SchedulerError):
        driver.render(job(tmp_path, "x", "true", variables={"A=1;B": "x"}))


def test_commands_are_argument_lists(driver, tmp_path):
    commands = [
        driver.submit_command(tmp_path / "s.sh"),
        driver.status_command(None),
        driver.status_command(["hansa.r.train-0001-a-1.1"]),
        driver.cancel_command(["1", "2"]),
    ]
    for command in commands:
        assert isinstance(command, list)
        assert all(isinstance(word, str) and word for word in command)
    assert str(tmp_path / "s.sh") in commands[0]
    assert list(tmp_path.iterdir()) == []


def test_a_strange_state_is_unknown_and_not_final(name, driver):
    jobs = driver.parse_status(0, DRIVERS[name].strange, "")
    assert jobs["7"].state is JobState.UNKNOWN
    assert not jobs["7"].state.final


@pytest.mark.parametrize("name", sorted(DRIVERS))
@given(
    code=st.integers(0, 255),
    out=st.text() | st.from_regex(r'\{"jobs": ?[\[{].{0,20}\}'),
    err=st.text(),
)
def test_any_output_is_read_or_refused(name, code, out, err):
    driver = build(name, Path("/none"))
    with suppress(SchedulerError):
        for key, status in driver.parse_status(code, out, err).items():
            assert isinstance(status, JobStatus)
            assert key == status.id
    with suppress(SchedulerError):
        assert driver.parse_submit(out).strip()


@pytest.mark.parametrize("name", sorted(DRIVERS))
@given(data=st.data())
def test_damaged_output_is_read_or_refused(name, data):
    driver, text = build(name, Path("/none")), DRIVERS[name].strange
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    junk = data.draw(st.sampled_from(["", "null", "[]", '"', "1e999", "NaN", "\0"]))
    with suppress(SchedulerError):
        jobs = driver.parse_status(0, text[:start] + junk + text[end:], "")
        assert all(isinstance(job, JobStatus) for job in jobs.values())


def test_a_status_that_fails_is_an_error(driver):
    with pytest.raises(SchedulerError, match="is on fire"):
        driver.parse_status(1, "", "the server is on fire")


# --- with a batch system ------------------------------------------------------------


class Live:
    def __init__(self, driver: Scheduler, root: Path) -> None:
        self.driver, self.root, self.batch = driver, root, Batch(driver)

    def submit(self, name: str, shell: str, **fields) -> str:
        script = self.root / f"{name}.sh"
        script.write_text(self.driver.render(job(self.root, name, shell, **fields)))
        return self.batch.submit(script)

    def until(self, ident: str, holds: Callable[[JobStatus], bool]) -> JobStatus:
        end = time.monotonic() + 90
        while not holds(status := self.batch.jobs()[ident]):
            assert time.monotonic() < end, f"not in time: {status}"
            time.sleep(0.05)
        return status


@pytest.fixture
def live(name, driver, tmp_path):
    if not DRIVERS[name].live:
        pytest.skip(f"no {name} batch system here")
    yield Live(driver, tmp_path)
    DRIVERS[name].stop(tmp_path)


@pytest.mark.integration
def test_a_job_is_found_by_name_and_ends_well(live, tmp_path):
    assert live.batch.jobs() == {}
    ident = live.submit("train-0001-a-1.1", "echo $WORD", variables={"WORD": "a 'b'"})
    jobs = live.batch.jobs(["hansa.r.train-0001-a-1.1"])
    assert jobs[ident].name == "hansa.r.train-0001-a-1.1"
    done = live.until(ident, lambda status: status.state.final)
    assert (done.state, done.exit_code, done.nodes) == (JobState.DONE, 0, 1)
    assert done.submitted <= done.started <= done.ended
    assert (tmp_path / "train-0001-a-1.1.log").read_text() == "a 'b'\n"


@pytest.mark.integration
def test_a_job_that_fails_says_how(live):
    ident = live.submit("train-0001-a-1.1", "exit 9")
    done = live.until(ident, lambda status: status.state.final)
    assert (done.state, done.exit_code) == (JobState.FAILED, 9)
    assert done.reason


@pytest.mark.integration
def test_cancelling_is_idempotent(live):
    ident = live.submit("train-0001-a-1.1", "sleep 300")
    live.until(ident, lambda status: status.state is JobState.RUNNING)
    live.batch.cancel([ident])
    done = live.until(ident, lambda status: status.state.final)
    assert done.state is JobState.CANCELLED
    live.batch.cancel([ident, "999999"])
    assert live.batch.jobs()[ident] == done
