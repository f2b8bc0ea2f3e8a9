"""`hansa check` over pretended facilities, in this process."""

import asyncio
import json
import time

import pytest
from typer.testing import CliRunner

import hansa
from hansa.cli.app import app
from hansa.coordinator import preflight, trial
from hansa.core.errors import GatewayError, SchedulerError, UsageError
from hansa.core.remarks import OK, WARNING, Remark

FEDERATION = """\
name: smol
model: {trainer: softmax, source: zeros, dtype: float32}
task: digits
strategy: {name: fedavg}
stop: {rounds: 1}
defaults: {mover: posix, work: {steps: 1}}
facilities:
  east: {gateway: {type: local, site: east.yaml}}
  west: {gateway: {type: local, site: west.yaml}}
"""
FOUND = {
    "host": "nid001",
    "python": "3.12.1",
    "hansa": "0",
    "torch": "2.6",
    "imports_failed": {},
    "gpus": [],
    "problems": [],
}


class Facility:
    timeout, every = 60.0, 0.0

    """Answers as told; every answer may be an error."""

    def __init__(self, name) -> None:
        self.name = name
        self.probe = {
            "facility": name,
            "hansa": hansa.__version__,
            "scheduler": "slurm",
            "free_bytes": 10**12,
            "node": {"gpus": 0, "gpu_memory": None, "ranks": 1},
            "problems": [],
            "notes": [],
        }
        self.submit = {"script": "#!", "accepted": "Slurm would take it."}
        self.reports = [self.report("QUEUED"), self.report("DONE", found=FOUND)]
        self.asked = []
        self.delay = 0.0

    def report(self, state, found=None, error=None, why=""):
        record = {"state": state, "why": why, "submitted": 10.0, "started": 22.0}
        status = None
        if found is not None:
            status = {"phase": "done", "found": found}
        if error is not None:
            status = {"phase": "failed", "error": error.to_json()}
        return {"scheduler": record, "status": status}

    async def call(self, request, timeout):  # noqa: ASYNC109
        self.asked.append(request)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self.delay)
        except TimeoutError:
            raise GatewayError(f"{self.name} has not answered.") from None
        op = request["op"]
        if op == "probe":
            return self.raised({"clock": time.time(), **self.probe})
        if op == "submit":
            return self.raised(self.submit)
        if op == "poll":
            (key,) = request["jobs"]
            report = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
            return {"jobs": {key: report}, "pace": {"first": 0.01, "longest": 0.02}}
        return {"place": {"job": "7"}, "cancel": {}, "read": {"text": "a\nboom\n"}}[op]

    def raised(self, answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def check(self):
        return []

    async def close(self) -> None:
        pass

    @property
    def ops(self):
        return [request["op"] for request in self.asked]


@pytest.fixture
def there(monkeypatch):
    facilities = {name: Facility(name) for name in ("east", "west")}

    def make(spec):
        return facilities[str(spec.gateway.options["site"]).split("/")[-1][:4]]

    monkeypatch.setattr(preflight, "make_gateway", make)
    return facilities


@pytest.fixture
def check(tmp_path):
    file = tmp_path / "federation.yaml"
    file.write_text(FEDERATION)

    def invoke(*words):
        return CliRunner().invoke(app, ["check", str(file), *words])

    return invoke


def data(check, *words):
    result = check(*words, "--json")
    return json.loads(result.stdout)


def states(found, name="east"):
    order = {"ok": 0, "unknown": 1, "warning": 2, "problem": 3}
    worst = {}
    for one in found["data"][name]["findings"]:
        known = worst.get(one["check"], "ok")
        worst[one["check"]] = max(known, one["state"], key=order.__getitem__)
    return worst


def test_all_is_well(check, there):
    result = check()
    assert result.exit_code == 0, result.output
    assert "all ready" in result.stdout
    for words in ("east", "west", "Slurm would take it.", "1.0 TB free", "clock"):
        assert words in result.stdout
    assert there["east"].ops == ["probe", "submit"]
    assert there["east"].asked[1]["dry_run"] is True


def test_every_failure_has_its_row_and_its_remedy(check, there):
    there["east"].probe["problems"] = [
        {"what": "The mailbox /m can't be written.", "hint": "Name another."},
        {"what": "The data of the task 'digits' is not there.", "hint": "Put it."},
        {"what": "The environment of a job can't start.", "hint": "Mend it."},
        {"what": "squeue has not answered.", "hint": "Wait."},
    ]
    there["west"].submit = SchedulerError("Invalid account.", hint="Use another.")
    result = check()
    assert result.exit_code == 3
    assert "not ready: east, west" in result.stdout
    for hint in ("Name another.", "Put it.", "Mend it.", "Wait.", "Use another."):
        assert f"help: {hint}" in result.stdout
    found = data(check)
    assert found["exit_code"] == 3
    east, west = states(found), states(found, "west")
    names = ("mailbox", "data", "environment", "scheduler")
    assert {east[name] for name in names} == {"problem"}
    assert west["job accepted"] == "problem"
    assert west["mailbox"] == "ok"


def test_a_login_that_gateway_and_mover_share_is_told_once(check, there, monkeypatch):
    class Mover:
        async def check(self):
            return [login, Remark("line", OK, "the collection is there")]

        async def close(self) -> None:
            pass

    async def look():
        return [login, Remark("endpoint", OK, "online")]

    login = Remark("login", WARNING, "It ends soon.", "Run `hansa login`.")
    there["east"].check = look
    monkeypatch.setattr(preflight, "make_mover", lambda facility, place: Mover())
    found = data(check)["data"]["east"]["findings"]
    said = [one["check"] for one in found]
    assert [said.count(one) for one in ("login", "endpoint", "line")] == [1, 1, 1]
    assert check().stdout.count("east: login: warning: It ends soon.") == 1


def test_a_facility_that_hangs_keeps_nobody_waiting(check, there, monkeypatch):
    monkeypatch.setattr(Facility, "timeout", 0.5)
    there["east"].delay = 60.0
    began = time.monotonic()
    found = data(check)
    assert time.monotonic() - began < 20
    assert states(found) == {"reachable": "problem"}
    assert "problem" not in states(found, "west").values()


@pytest.mark.parametrize(("ahead", "state"), [(-5, "ok"), (90, "warning")])
def test_clocks_are_compared_and_never_decide(check, there, ahead, state):
    there["east"].probe["clock"] = time.time() + ahead
    found = data(check)
    assert states(found)["clock"] == state
    assert found["exit_code"] == 0
    (clock,) = (f for f in found["data"]["east"]["findings"] if f["check"] == "clock")
    assert float(clock["detail"].split()[0]) == pytest.approx(ahead, abs=5)


def test_another_version_is_a_warning(check, there):
    there["east"].probe["hansa"] = "9.9"
    result = check()
    assert result.exit_code == 0
    assert "9.9 there" in result.stdout


def with_model(tmp_path, size):
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": np.zeros(size // 4, "float32")}, folder / "m.safetensors")
    return f"model.source={folder}"


def test_free_space_is_held_against_the_model(check, there, tmp_path):
    change = with_model(tmp_path, 4_000_000)
    # Three versions of 4 MB, and an update in half the width.
    there["east"].probe["free_bytes"] = 13_900_000
    there["west"].probe["free_bytes"] = 14_100_000
    found = data(check, change)
    assert states(found)["free space"] == "problem"
    assert states(found, "west")["free space"] == "ok"


def test_an_unknown_size_is_said_and_does_not_fail(check, there):
    found = data(check)
    assert states(found)["free space"] == "unknown"
    assert found["exit_code"] == 0


def test_a_profile_and_a_site_that_differ_are_shown(check, there):
    change = "facilities.east.profile=alcf/polaris"
    assert states(data(check, change))["gpus"] == "warning"
    there["east"].probe["node"] = {"gpus": 4, "gpu_memory": 40 * 10**9, "ranks": 4}
    assert states(data(check, change))["gpus"] == "ok"


# --- the trial job --------------------------------------------------------------------


def test_a_trial_tells_where_it_ran(check, there):
    result = check("--submit")
    assert result.exit_code == 0, result.output
    assert "ran on nid001 after 12s" in result.stdout
    assert "torch 2.6" in result.stdout
    assert "east: trial job 7 is submitted" in result.stderr
    assert there["east"].ops == ["probe", "submit", "place", "poll", "poll"]
    placed = there["east"].asked[2]
    assert placed["run"] == trial.RUN
    assert placed["assignment"].startswith("trial-")
    assert placed["job"]["time"] <= trial.TIME_S


def test_a_trial_finds_what_is_missing(check, there):
    wrong = {
        **FOUND,
        "imports_failed": {"trainer softmax": "no numpy", "task other": "no"},
        "problems": [{"what": "This node shows 0 GPUs.", "hint": "-C gpu"}],
    }
    there["east"].reports = [there["east"].report("DONE", found=wrong)]
    found = data(check, "--submit")
    assert states(found)["environment"] == "problem"
    assert states(found)["gpus"] == "problem"
    assert "task other" not in json.dumps(found["data"]["east"]["problems"])
    assert states(found, "west")["gpus"] == "ok"


def test_a_trial_counts_gpus_against_the_profile(check, there):
    change = "facilities.east.profile=alcf/polaris"
    there["east"].probe["node"] = {"gpus": 4, "gpu_memory": 40 * 10**9, "ranks": 4}
    gpus = [{"name": "A100", "memory_bytes": 39 * 10**9}] * 4
    for many, state in ((4, "ok"), (3, "problem")):
        seen = {**FOUND, "gpus": gpus[:many]}
        there["east"].reports = [there["east"].report("DONE", found=seen)]
        assert states(data(check, "--submit", change))["gpus"] == state


def test_a_trial_that_failed_says_why(check, there):
    error = SchedulerError("The ranks are incomplete.", hint="Look at `launch`.")
    there["east"].reports = [there["east"].report("FAILED", error=error)]
    result = check("--submit")
    assert result.exit_code == 3
    assert "trial job: problem: The ranks are incomplete." in result.stdout
    assert "help: Look at `launch`." in result.stdout


def test_a_trial_that_waits_too_long_is_cancelled(check, there):
    waits = there["east"].report("QUEUED", why="Resources are busy.")
    there["east"].reports = [waits]
    result = check("--submit", "--wait", "0.1")
    assert result.exit_code == 3
    assert "queued (Resources are busy.)" in result.stdout
    assert there["east"].ops[-1] == "cancel"


def test_a_trial_without_a_word_shows_its_log(check, there, monkeypatch):
    monkeypatch.setattr(trial, "_LOST_S", 0.05)
    there["east"].reports = [there["east"].report("FAILED")]
    result = check("--submit")
    assert result.exit_code == 3
    assert "Its log ends with: a | boom" in result.stdout


def test_where_something_is_wrong_already_nothing_is_submitted(check, there):
    there["east"].probe["problems"] = [{"what": "squeue is away.", "hint": "x"}]
    found = data(check, "--submit")
    assert states(found)["trial job"] == "unknown"
    assert "place" not in there["east"].ops
    assert "place" in there["west"].ops


def test_jobs_for_a_block_that_nobody_holds_are_a_problem(check, there):
    there["east"].probe["scheduler"] = "block"
    found = data(check, "--submit")
    assert (states(found)["scheduler"], states(found)["trial job"]) == (
        "problem",
        "unknown",
    )
    assert "place" not in there["east"].ops


def test_no_duration_is_a_usage_error(check, there):
    result = check("--submit", "--wait", "soon")
    assert isinstance(result.exception, UsageError)
    result = check("--wait", "soon")
    assert isinstance(result.exception, UsageError)


PROD = ("facilities.east.profile=alcf/aurora", "facilities.east.job.queue=prod")


def test_a_trial_is_never_large(check, there):
    found = data(check, "--submit", *PROD)
    assert states(found)["trial job"] == "problem"
    assert "place" not in there["east"].ops
    (problem,) = (p for p in found["data"]["east"]["problems"] if "trial" in p["what"])
    assert "256 nodes at least" in problem["what"]
    assert "--queue east=QUEUE" in problem["hint"]
    assert "capacity, debug." in problem["hint"]


def test_a_trial_may_have_a_queue_of_its_own(check, there):
    change = "facilities.east.job.reservation=BIG"
    result = check("--submit", "--queue", "east=debug", *PROD, change)
    (placed,) = (one for one in there["east"].asked if one["op"] == "place")
    assert placed["job"]["queue"] == "debug"
    assert placed["job"]["reservation"] is None
    assert placed["job"]["nodes"] == 1
    assert "is submitted: 1 node for 5m00 at most in debug" in result.stderr
    assert (
        "1 node for 5m00 at most in debug"
        in data(check, "--submit", "--queue", "east=debug", *PROD)["data"]["east"][
            "findings"
        ][-3]["detail"]
    )


@pytest.mark.parametrize("queue", ["debug", "north=debug", "east=", "east=a b"])
def test_a_queue_of_nowhere_is_a_usage_error(check, there, queue):
    result = check("--submit", "--queue", queue)
    assert isinstance(result.exception, UsageError)
