"""Handing jobs over to a block, against a service that is a dictionary."""

import asyncio
import json
from itertools import pairwise

import pytest
from pydantic import ValidationError

from hansa.core.errors import GatewayError, LoginError, PolicyError
from hansa.gateway.globus_block import (
    LONGEST_RETRY_S,
    LOOK_S,
    RETRY_S,
    Block,
    BlockOptions,
)
from hansa.gateway.globus_function import LONGEST_S
from hansa.gateway.globus_rest import Outcome
from hansa.site import rpc

ENDPOINT = "7b2a0f1e-0000-4000-8000-000000000001"
FUNCTION = "7b2a0f1e-0000-4000-8000-00000000000f"
RUN, ORDER = "smol", "train-0001-polaris-1"
KEY = f"{ORDER}.1"
AGAIN_S = 1000.0


class Service:
    """Takes tasks; a test says how they end."""

    def __init__(self):
        self.tasks: dict[str, Outcome] = {}
        self.submitted: list[tuple] = []
        self.refusal: Exception | None = None
        self.is_online = True
        self.asked = 0

    async def submit(self, endpoint, function, arguments, resources=None):
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append((endpoint, function, arguments, resources))
        task = f"task-{len(self.submitted)}"
        self.tasks[task] = Outcome("waiting-for-nodes")
        return task

    async def ask(self, question):
        self.asked += 1
        return question(self)

    def outcomes(self, tasks):
        return {task: self.tasks[task] for task in tasks if task in self.tasks}

    async def online(self, endpoint):
        return self.is_online

    def requests(self):
        return [arguments["request"] for _, _, arguments, _ in self.submitted]


class Town:
    """A block with its service and a clock."""

    def __init__(self, **options):
        self.service, self.time = Service(), 0.0
        given = {"endpoint": ENDPOINT, "nodes": 2, "again": AGAIN_S, **options}
        self.block = Block(
            BlockOptions.model_validate(given),
            FUNCTION,
            lambda: self.service,
            lambda: self.time,
        )

    def submit(self, nodes=1, reply=None, **more):
        order = {"assignment": ORDER}
        ask = rpc.submit(RUN, order, 1, {"nodes": nodes, "time": 60}, **more)
        self.block.check(ask)
        asyncio.run(self.block.follow(ask, reply or {"job": "1", "found": False}))

    def poll(self, state="QUEUED", key=KEY, host=None, nodes=1):
        record = {
            "id": "1",
            "name": f"hansa.{RUN}.{host or key}",
            "state": state,
            "nodes": nodes,
            "why": "It waits.",
        }
        reply = {"jobs": {key: {"scheduler": record, "update": None}}}
        asyncio.run(self.block.follow(rpc.poll(RUN, [key]), reply))
        return record["why"]

    @property
    def handed(self):
        return len(self.service.submitted)


def returned(ok=True, **data):
    reply = rpc.reply(data) if ok else {"schema": 1, "ok": False, "error": data}
    result = {"trouble": "", "returncode": 0, "stderr": "", "stdout": json.dumps(reply)}
    return Outcome("success", over=True, result=result)


def test_a_submitted_job_is_handed_over_once():
    town = Town()
    town.submit()
    ((endpoint, function, arguments, resources),) = town.service.submitted
    assert (endpoint, function, resources) == (ENDPOINT, FUNCTION, None)
    assert arguments == {
        "request": rpc.work(RUN, KEY),
        "timeout": LONGEST_S,
        "expires": None,
    }
    for _ in range(5):
        town.time += 5
        why = town.poll()
    assert town.handed == 1
    assert why == f"It waits for the block of the endpoint {ENDPOINT}."


def test_a_placed_job_is_handed_over_too():
    town = Town()
    ask = rpc.place(RUN, "ahead-0001-polaris-1", 2, {"nodes": 1, "time": 60})
    asyncio.run(town.block.follow(ask, {"job": "1", "found": False}))
    assert town.service.requests() == [rpc.work(RUN, "ahead-0001-polaris-1.2")]


@pytest.mark.parametrize(
    ("reply", "more"),
    [
        ({"job": "1", "found": True, "host": ""}, {}),
        ({"job": "1", "found": False, "host": "train-0000-polaris-1.1"}, {}),
        ({"job": None, "found": False}, {"dry_run": True}),
    ],
)
def test_nothing_is_handed_over_without_need(reply, more):
    town = Town()
    town.submit(reply=reply, **more)
    assert town.handed == 0


def test_a_wide_task_says_its_nodes_to_an_mpi_engine():
    town = Town(engine="GlobusMPIEngine")
    town.submit(nodes=2)
    resources = town.service.submitted[0][3]
    assert resources == {"num_nodes": 2, "ranks_per_node": 1}


def test_a_job_wider_than_the_block_is_refused_before_anything_is_sent():
    town = Town()
    with pytest.raises(PolicyError, match=r"asks for 3 nodes; .* has 2") as error:
        town.submit(nodes=3)
    assert not error.value.transient
    ask = rpc.place(RUN, "ahead-0001-polaris-1", 1, {"nodes": 9, "time": 60})
    with pytest.raises(PolicyError):
        town.block.check(ask)
    town.block.check(rpc.poll(RUN, [KEY]))
    assert town.handed == 0


def test_a_wide_job_that_waits_there_already_is_not_sent_either():
    town = Town()
    assert "asks for 3 nodes" in town.poll(nodes=3)
    assert town.handed == 0


def test_after_a_restart_a_job_that_waits_is_handed_over_by_a_poll():
    town = Town()
    town.poll("RUNNING")
    assert town.handed == 0
    town.poll()
    town.poll()
    assert town.service.requests() == [rpc.work(RUN, KEY)]


def test_of_an_order_in_another_job_that_job_is_handed_over():
    town = Town()
    town.poll(host="ahead-0001-polaris-1.1")
    assert town.service.requests() == [rpc.work(RUN, "ahead-0001-polaris-1.1")]


def test_jobs_of_strangers_are_left_alone():
    town = Town()
    town.poll(host="../x")
    assert town.handed == 0


def test_a_task_that_died_is_followed_by_another():
    town = Town()
    town.submit()
    town.service.tasks["task-1"] = Outcome(
        "failed", over=True, failure="parsl...ManagerLost: Task failure due to loss"
    )
    town.time += LOOK_S
    assert "lost the process" in town.poll()
    assert town.handed == 1
    town.time += RETRY_S
    why = town.poll()
    assert town.handed == 2
    assert "Last trouble" in why


def test_a_task_that_the_service_has_forgotten_is_followed_by_another():
    town = Town()
    town.submit()
    town.service.tasks.clear()
    town.time += LOOK_S
    assert "knows its task no more" in town.poll()
    town.time += RETRY_S
    town.poll()
    assert town.handed == 2


def test_a_task_that_is_well_is_asked_for_rarely():
    town = Town()
    town.submit()
    for _ in range(int(4 * LOOK_S)):
        town.time += 1
        why = town.poll()
    assert town.service.asked == 4
    assert "(waiting-for-nodes)" in why


def test_a_refusal_by_the_block_is_told_with_its_hint():
    town = Town()
    town.submit()
    error = PolicyError("This is no block.", hint="Set HANSA_BLOCK.").to_json()
    town.service.tasks["task-1"] = returned(ok=False, **error)
    town.time += LOOK_S
    why = town.poll()
    assert "This is no block. Set HANSA_BLOCK." in why


def test_a_block_that_is_nearly_over_leaves_the_job_to_the_next_one():
    town = Town()
    town.submit()
    town.service.tasks["task-1"] = returned(state="QUEUED", reason="too little is left")
    town.time += LOOK_S
    assert "too little is left" in town.poll()
    town.time += RETRY_S
    town.poll()
    assert town.handed == 2


def test_tries_that_fail_become_rarer():
    town = Town()
    town.service.refusal = GatewayError("The service is away.", hint="Wait.")
    tried = []
    before = 0
    for _ in range(1440):
        town.time += 5
        why = town.poll()
        tries = town.block._jobs[RUN, KEY].tries
        if tries > before:
            tried.append(town.time)
            before = tries
    assert "The service is away. Wait." in why
    pauses = [b - a for a, b in pairwise(tried)]
    assert pauses[:4] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S, 8 * RETRY_S]
    assert set(pauses[6:]) == {LONGEST_RETRY_S}
    town.service.refusal = None
    town.time += LONGEST_RETRY_S
    town.poll()
    assert town.handed == 1


def test_a_login_that_ran_out_is_named_and_does_not_fail_the_submission():
    town = Town()
    town.service.refusal = LoginError("The login has expired.", hint="hansa login")
    town.submit()
    town.time += 1
    assert "The login has expired. hansa login" in town.poll()


def test_an_endpoint_that_is_offline_is_told():
    town = Town()
    town.submit()
    town.service.is_online = False
    town.time += LOOK_S
    assert "is offline" in town.poll()
    town.service.is_online = True
    town.time += LOOK_S
    assert "offline" not in town.poll()
    assert town.handed == 1


def test_a_job_of_which_nothing_is_heard_is_handed_over_again_ever_more_rarely():
    town = Town()
    town.submit()
    for _ in range(70):
        town.time += AGAIN_S / 10
        town.poll()
    # After 1, 2 and 4 times the pause.
    assert town.handed == 4


def test_a_job_that_runs_is_forgotten():
    town = Town()
    town.submit()
    town.poll("RUNNING")
    assert town.block._jobs == {}


def test_a_poll_that_hands_jobs_over_keeps_no_other_call_waiting():
    town = Town()

    async def work():
        gate, submit = asyncio.Event(), town.service.submit

        async def slow(*words):
            await gate.wait()
            return await submit(*words)

        town.service.submit = slow
        record = {"id": "1", "name": f"hansa.{RUN}.{KEY}", "state": "QUEUED"}
        answer = {"jobs": {KEY: {"scheduler": {**record, "nodes": 1}}}}
        poll = asyncio.create_task(town.block.follow(rpc.poll(RUN, [KEY]), answer))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await town.block.follow(rpc.cancel(RUN, [KEY]), {"cancelled": []})
        assert not poll.done()
        gate.set()
        await poll

    asyncio.run(work())
    assert town.handed == 1


def test_an_answer_without_jobs_is_left_to_others():
    town = Town()
    for reply in ({}, {"jobs": None}, {"jobs": {KEY: None}}, {"jobs": {KEY: {}}}):
        asyncio.run(town.block.follow(rpc.poll(RUN, [KEY]), reply))
    assert town.handed == 0


@pytest.mark.parametrize(
    "wrong", [{"endpoint": "x"}, {"nodes": 0}, {"engine": "mpi"}, {"worker": 1}]
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        BlockOptions.model_validate({"endpoint": ENDPOINT, **wrong})
