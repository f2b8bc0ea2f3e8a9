"""A facility with a batch system that is a dictionary."""

import json
from pathlib import Path

import pytest

from hansa.core.errors import SchedulerError
from hansa.site.agent import Agent
from hansa.site.batch import Answer
from hansa.spec.site import SiteSpec

RUN = "smol"
ORDER = "train-0001-polaris-1"
KEY = f"{ORDER}.1"


def site_spec(root: Path, **fields) -> SiteSpec:
    data = {
        "name": "polaris",
        "scheduler": {"type": "local", "slots": 64},
        "mailbox": str(root / "mail"),
        "tasks": {"digits": {"splits": ["ones", "twos"], "options": {"sites": 4}}},
        "modules": ["mylab.models:net"],
        "models": {"llama": "/models/llama", "/home/me/llama": "/models/mine"},
        "limits": {"nodes": 8, "time": "1:00:00", "jobs_in_queue": 2},
    }
    return SiteSpec.model_validate({**data, **fields})


def order(**fields):
    data = {
        "schema": 1,
        "run": RUN,
        "assignment": ORDER,
        "kind": "train",
        "facility": "polaris",
        "round": 1,
        "steps": 30,
        "version": None,
        "seed": 7,
        "model": {
            "trainer": "softmax",
            "source": "zeros",
            "dtype": "float32",
            "options": {},
        },
        "task": {"name": "digits", "data": ["ones"], "options": {"sites": 2, "x": 1}},
        "work": {"batch": 8},
        "update": {"dtype": "bfloat16"},
        "evaluate": True,
        "nonce": "",
    }
    return {**data, **fields}


class FakeBatch:
    """Understands the local driver's commands; may lose answers."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.asked = 0
        self.submissions = 0
        self.lose_submit_answer = False
        self.refuse = ""

    def __call__(self, command, timeout):
        if command[0] == "/bin/sh":
            self.asked += 1
            jobs = list(self.jobs.values())
            return Answer(0, json.dumps({"jobs": jobs}), "")
        return self._cancel(command) if "cancel" in command else self._submit(command)

    def _submit(self, command):
        if self.refuse:
            return Answer(1, "", self.refuse)
        self.submissions += 1
        job, script = str(self.submissions), Path(command[-1]).read_text()
        name = script.partition("#HANSA name=")[2].splitlines()[0]
        self.jobs[job] = {"id": job, "name": name, "state": "QUEUED", "submitted": 1.0}
        if self.lose_submit_answer:
            raise SchedulerError("no answer", transient=True)
        return Answer(0, f"{job}\n", "")

    def _cancel(self, command):
        for job in command[command.index("--") + 1 :]:
            self.jobs[job]["state"] = "CANCELLED"
        return Answer(0, "", "")


class Facility:
    """An agent, its batch system and its mailbox."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.batch = FakeBatch()
        self.use()

    def use(self, **fields) -> None:
        self.site = site_spec(self.root, **fields)
        self.agent = Agent(self.site, run=self.batch)

    @property
    def mail(self) -> Path:
        return self.site.mailbox / RUN

    def ask(self, request):
        reply = self.agent.handle(json.loads(json.dumps(request)))
        return json.loads(json.dumps(reply))

    def data(self, request):
        reply = self.ask(request)
        assert reply["ok"], reply
        return reply["data"]

    def error(self, request):
        reply = self.ask(request)
        assert not reply["ok"], reply
        return reply["error"]


@pytest.fixture
def facility(tmp_path):
    return Facility(tmp_path)


@pytest.fixture
def make_order():
    return order


@pytest.fixture
def make_site(tmp_path):
    return lambda **fields: site_spec(tmp_path, **fields)
