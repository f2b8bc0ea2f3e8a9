"""The gateway over a pretended service; over real endpoints see the contract tests."""

import asyncio
import json
import time
from uuid import UUID

import pytest
from pydantic import ValidationError

from hansa.core.errors import GatewayError, LoginError
from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING, Remark
from hansa.gateway import globus_check, globus_service
from hansa.gateway.globus_compute import REQUEST_LIMIT, SLACK_S, GlobusComputeGateway
from hansa.gateway.globus_rest import Outcome, Submitted
from hansa.login import standing
from hansa.site import rpc
from hansa.testing import virtual_time

E = "11111111-1111-4111-8111-111111111111"
F = "22222222-2222-4222-8222-222222222222"
OPTIONS = {"endpoint": E, "function": F}
REPLY = json.dumps(rpc.reply({"facility": "there"}))
ANSWER = {"trouble": "", "returncode": 0, "stdout": REPLY, "stderr": ""}


class FakeRest:
    """The service, and the endpoint behind it."""

    def __init__(self) -> None:
        self.word = "online"
        self.outcome: Outcome | None = Outcome("success", over=True, result=ANSWER)
        self.error: Exception | None = None
        self.sent: list[dict] = []
        self.looked = 0
        self.list: list[str] | None = [F]
        self.text = globus_check.source()

    def submit(self, endpoint, function, arguments, group, resources=None):
        assert (endpoint, function) == (E, F)
        if self.error:
            raise self.error
        self.sent.append(arguments)
        return Submitted(f"task-{len(self.sent)}", "group")

    def outcomes(self, tasks):
        if self.error:
            raise self.error
        return {task: self.outcome or Outcome("waiting-for-ep") for task in tasks}

    def status(self, endpoint):
        self.looked += 1
        return self.word

    def endpoint(self, endpoint):
        return {"display_name": "polaris"}

    def allowed(self, endpoint):
        if isinstance(self.list, Exception):
            raise self.list
        return self.list

    def function(self, function):
        return {"function_name": globus_check.NAME, "function_code": self.text}

    def close(self):
        pass


@pytest.fixture
def rest(monkeypatch):
    made = FakeRest()
    monkeypatch.setattr(globus_service, "GlobusRest", lambda: made)
    monkeypatch.setattr(
        standing, "remarks", lambda compute: [Remark("login", OK, "me@anl.gov")]
    )
    return made


def run(work, **options):
    async def whole():
        kind = GlobusComputeGateway
        gateway = kind(kind.Options.model_validate({**OPTIONS, **options}))
        try:
            return await work(gateway)
        finally:
            await gateway.close()

    return virtual_time.run(whole())


def call(gateway, seconds=100.0):
    return gateway.call(rpc.probe(), seconds)


async def failing(gateway, seconds=100.0) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await call(gateway, seconds)
    return caught.value


def test_its_options_are_ids_and_durations():
    read = GlobusComputeGateway.Options.model_validate
    made = read({**OPTIONS, "timeout": "5m", "every": 20})
    assert (made.endpoint, made.timeout, made.every) == (UUID(E), 300.0, 20.0)
    for wrong in ({"endpoint": "polaris"}, {"function": ""}, {"timeout": 0}, {"x": 1}):
        with pytest.raises(ValidationError):
            read({**OPTIONS, **wrong})


def test_a_request_goes_with_its_deadline_and_comes_back_as_data(rest):
    before = time.time()
    assert run(call) == {"facility": "there"}
    (sent,) = rest.sent
    assert sent["request"] == rpc.probe()
    assert sent["timeout"] == 100.0
    late = sent["expires"] - before - 100.0 - SLACK_S
    assert 0 <= late < 60


def test_a_request_too_large_for_the_way_is_not_sent(rest):
    async def work(gateway):
        with pytest.raises(GatewayError, match="bytes") as caught:
            await gateway.call({"op": "submit", "x": "y" * REQUEST_LIMIT}, 9.0)
        return caught.value

    error = run(work)
    assert not error.transient
    assert not rest.sent


def test_to_an_offline_endpoint_nothing_is_sent(rest):
    rest.word = "offline"

    async def work(gateway):
        first = await failing(gateway)
        await asyncio.sleep(3600)
        return first, await failing(gateway)

    first, second = run(work)
    assert first.message == f"The endpoint {E} is offline."
    assert "for at least 1h00" in second.message
    assert first.transient
    assert second.transient
    assert not rest.sent


def test_one_that_answers_is_not_looked_at_before_each_call(rest):
    async def work(gateway):
        for _ in range(4):
            await call(gateway)

    run(work)
    assert (len(rest.sent), rest.looked) == (4, 1)


def test_online_but_silent_ends_at_the_deadline_and_is_said(rest):
    rest.outcome = None

    async def work(gateway):
        error = await failing(gateway, 30.0)
        return error, asyncio.get_running_loop().time()

    error, when = run(work)
    assert 30 <= when < 36
    assert "within 30 s" in error.message
    assert "counts it as online" in error.message
    assert error.transient


def test_one_that_went_offline_meanwhile_is_said(rest):
    rest.outcome = None

    async def work(gateway):
        task = asyncio.create_task(failing(gateway, 30.0))
        await asyncio.sleep(5)
        rest.word = "offline"
        first = await task
        await asyncio.sleep(60)
        return first, await failing(gateway)

    first, second = run(work)
    assert "It is offline now." in first.message
    assert "is offline, for at least" in second.message
    assert len(rest.sent) == 1


def test_what_keeps_the_poller_is_said_at_the_deadline(rest):
    rest.outcome = None

    async def work(gateway):
        task = asyncio.create_task(failing(gateway, 30.0))
        await asyncio.sleep(5)
        rest.error = GatewayError("Globus answers 503.")
        return await task

    assert "Globus answers 503." in run(work).message


def test_after_silence_a_late_answer_is_not_taken_for_the_next_one(rest):
    rest.outcome = None

    async def work(gateway):
        await failing(gateway, 5.0)
        late = {**ANSWER, "stdout": json.dumps(rpc.reply({"facility": "late"}))}
        fresh = Outcome("success", over=True, result=ANSWER)
        ends = {"task-1": Outcome("success", over=True, result=late), "task-2": fresh}
        rest.outcomes = lambda tasks: {one: ends[one] for one in tasks}
        return await call(gateway)

    assert run(work) == {"facility": "there"}


SUBMIT = rpc.submit("r", {"assignment": "train-0001-there-1"}, 1, {"nodes": 1})
KEY = "train-0001-there-1.1"


def test_to_cancel_what_may_still_be_submitted_is_to_refuse_it(rest):
    """However the request to submit was lost: by silence, or as nobody waited."""
    waiting, rest.outcome = rest.outcome, None

    async def given_up(gateway):
        with pytest.raises(GatewayError):
            await gateway.call(SUBMIT, 30.0)

    async def withdrawn(gateway):
        task = asyncio.create_task(gateway.call(SUBMIT, 30.0))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def cancelled(gateway, key=KEY):
        rest.outcome = waiting
        await gateway.call(rpc.cancel("r", [key]), 30.0)
        return rest.sent[-1]["request"].get("late")

    for lose in (given_up, withdrawn):

        async def work(gateway, lose=lose):
            rest.outcome = None
            await lose(gateway)
            return await cancelled(gateway), await cancelled(gateway, f"{KEY}1")

        late, other = run(work)
        assert 30.0 + SLACK_S < late <= 30.0 + 2 * SLACK_S
        assert other is None
    assert rpc.parse_request(rest.sent[-2]["request"]).late == late


def test_to_cancel_what_was_submitted_refuses_nothing(rest):
    async def work(gateway):
        await gateway.call(SUBMIT, 30.0)
        await gateway.call(rpc.cancel("r", [KEY]), 30.0)

    run(work)
    assert rest.sent[-1]["request"] == rpc.cancel("r", [KEY])


def test_a_login_that_ends_is_said_with_the_command(rest):
    async def work(gateway):
        await call(gateway)
        rest.error = LoginError("It has ended.", hint="Run `hansa login`.")
        with pytest.raises(LoginError) as caught:
            await call(gateway)
        return caught.value

    assert "hansa login" in run(work).hint


def test_a_failed_task_is_an_error_of_the_way(rest):
    rest.outcome = Outcome("failed", over=True, failure="x\nManagerLost: gone")
    error = run(failing)
    assert "lost the process" in error.message
    assert error.transient


def test_it_may_be_closed_before_it_was_used(rest):
    async def work(gateway):
        return None

    assert run(work) is None


# --- check ----------------------------------------------------------------------------


def states(rest):
    said = run(lambda gateway: gateway.check())
    return [(one.check, one.state) for one in said], " ".join(
        f"{one.detail} {one.hint}" for one in said
    )


def test_all_is_well(rest):
    found, text = states(rest)
    assert found == [("login", OK), ("endpoint", OK), ("endpoint", OK)]
    assert f"polaris ({E}) is online" in text


def test_without_a_login_nothing_else_is_asked(rest, monkeypatch):
    gone = [Remark("login", PROBLEM, "Nobody.", "Run `hansa login`.")]
    monkeypatch.setattr(standing, "remarks", lambda compute: gone)
    assert states(rest) == ([("login", PROBLEM)], "Nobody. Run `hansa login`.")
    assert rest.looked == 0


def test_an_offline_endpoint_is_a_problem(rest):
    rest.word = "offline"
    found, text = states(rest)
    assert ("endpoint", PROBLEM) in found
    assert "globus-compute-endpoint start" in text


@pytest.mark.parametrize(
    ("allowed", "state", "told"),
    [
        ([], PROBLEM, f"add {F} to `allowed_functions`"),
        ([E], PROBLEM, f"add {F} to `allowed_functions`"),
        (None, WARNING, "any function"),
        (GatewayError("forbidden", transient=False), UNKNOWN, "forbidden"),
        ([E, F.upper()], OK, F),
    ],
)
def test_the_allow_list_must_have_the_function(rest, allowed, state, told):
    rest.list = allowed
    found, text = states(rest)
    assert found[2] == ("endpoint", state)
    assert told in text


def test_another_text_is_a_warning(rest):
    rest.text += "\n"
    found, text = states(rest)
    assert found[-1] == ("endpoint", WARNING)
    assert "hansa function register" in text


def test_a_text_that_is_wrapped_for_sending_is_known(rest):
    body = f"st\n{globus_check.NAME}:{globus_check.source()}"
    for wrapped in (body, f"{len(body)}\n{body}"):
        rest.text = wrapped
        assert WARNING not in dict(states(rest)[0]).values()
