"""A facility with a batch system that is a dictionary, for the tests of its side."""

import json
import time
from pathlib import Path

from hansa.core.errors import SchedulerError
from hansa.mailbox.files import write_json
from hansa.mailbox.state import JobNotes
from hansa.scheduler.base import Answer, JobStatus
from hansa.scheduler.local import LocalOptions, LocalScheduler
from hansa.site.agent import Agent
from hansa.spec.site import SiteSpec

RUN = "smol"
ORDER = "train-0001-polaris-1"
KEY = f"{ORDER}.1"


def site_spec(root: Path, **fields) -> SiteSpec:
    data = {
        "name": "polaris",
        "scheduler": {"type": "local", "slots": 64},
        "mailbox": str(root / "mail"),
        "state": str(root / "own"),
        "tasks": {"digits": {"splits": ["ones", "twos"], "options": {"sites": 4}}},
        "modules": ["mylab.models:net"],
        "models": {"llama": "/models/llama", "/home/me/llama": "/models/mine"},
        "limits": {"nodes": 8, "time": "1:00:00", "jobs_in_queue": 2},
    }
    return SiteSpec.model_validate({**data, **fields})


def make_order(**fields):
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
        "update": {"dtype": "bfloat16", "compress": "none"},
        "evaluate": True,
        "nonce": "",
        "first": None,
        "seen": None,
        "lr_scale": 1.0,
        "proximal": 0.0,
        "control": "",
        "generate": None,
        "measure": None,
    }
    return {**data, **fields}


class Driver:
    """A driver in the words of no real batch system; its scripts are the local ones."""

    def __init__(self, site: SiteSpec) -> None:
        options = LocalOptions.model_validate(site.scheduler.options)
        self.render = LocalScheduler(options, site.state).render

    def submit(self, script):
        answer = yield ["submit", str(script)]
        if answer.returncode:
            words = answer.stderr
            raise SchedulerError(f"no: {words}", transient="later" in words)
        return answer.stdout

    def accepts(self, script):
        answer = yield ["accepts", str(script)]
        if answer.returncode:
            raise SchedulerError(f"no: {answer.stderr}")
        return answer.stdout

    def jobs(self, ids=()):
        answer = yield ["jobs", *ids]
        found = [JobStatus.from_json(job) for job in json.loads(answer.stdout)]
        return {job.id: job for job in found}

    def cancel(self, ids):
        yield ["cancel", *ids]


class Cluster:
    """The batch system behind `Driver`: a dictionary. It may lose answers."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.forgotten: set[str] = set()  # over, and shown only if asked for
        self.asked: list[list[str]] = []
        self.cancelled: list[list[str]] = []
        self.submissions = 0
        self.refuse = ""
        self.lose_answer = False
        self.lost = SchedulerError("no answer", transient=True)
        self.down = False
        self.away: Exception | None = None
        self.before_submit = lambda: None

    def __call__(self, command, timeout):
        if self.away is not None:
            raise self.away
        return getattr(self, f"_{command[0]}")(*command[1:])

    def _jobs(self, *ids):
        self.asked.append(list(ids))
        shown = [
            job
            for key, job in self.jobs.items()
            if key not in self.forgotten or key in ids
        ]
        return Answer(0, json.dumps(shown))

    def _submit(self, script):
        self.before_submit()
        if self.refuse:
            return Answer(1, "", self.refuse)
        name = Path(script).read_text().partition("#HANSA name=")[2].splitlines()[0]
        job = self.add(name)
        if self.lose_answer:
            raise self.lost
        return Answer(0, job)

    def add(self, name, state="QUEUED", submitted=None):
        self.submissions += 1
        job = str(self.submissions)
        submitted = time.time() if submitted is None else submitted
        given = {"id": job, "name": name, "state": state, "submitted": submitted}
        self.jobs[job] = given
        return job

    def _accepts(self, script):
        if self.refuse:
            return Answer(1, "", self.refuse)
        return Answer(0, f"fine: {len(Path(script).read_text().splitlines())} lines")

    def _cancel(self, *ids):
        self.cancelled.append(list(ids))
        for job in ids:
            self.jobs[job]["state"] = "CANCELLED"
        return Answer(0)

    def alive(self):
        over = ("DONE", "FAILED", "CANCELLED", "TIMEOUT")
        return [job for job in self.jobs.values() if job["state"] not in over]


class Facility:
    """An agent, its batch system, its mailbox and its notes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.batch = Cluster()
        self.use()

    def use(self, **fields) -> None:
        self.site = site_spec(self.root, **fields)
        self.agent = self.new_agent()

    def new_agent(self, **options) -> Agent:
        agent = Agent(self.site, run=self.batch, **options)
        if self.site.scheduler.type == "local":
            agent._scheduler = Driver(self.site)
        return agent

    @property
    def mail(self) -> Path:
        return self.site.mailbox / RUN

    @property
    def own(self) -> Path:
        return self.site.state / RUN

    def notes(self, key=KEY) -> JobNotes:
        return JobNotes(self.own / "jobs" / key)

    def status(self, key, phase) -> None:
        write_json(self.mail / "jobs" / key / "status.json", {"phase": phase})

    def deliver(self, key) -> None:
        name = key.rpartition(".")[0]
        write_json(self.mail / "updates" / name / "manifest.json", {"steps": 30})

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
