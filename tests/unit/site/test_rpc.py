import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import (
    GatewayError,
    HansaError,
    PolicyError,
    SchedulerError,
    UsageError,
)
from hansa.site import order as order_words
from hansa.site import rpc

JOB = "train-0003-polaris-1.2"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=8,
)


def test_requests_are_understood():
    assert rpc.parse_request(rpc.probe()).op == "probe"
    assert rpc.parse_request(rpc.poll("r", [JOB])).jobs == (JOB,)
    assert rpc.parse_request(rpc.cancel("r", [])).jobs == ()
    assert rpc.parse_request(rpc.read("r", "jobs/x", 100)).tail_bytes == 100
    assert rpc.parse_request(rpc.tidy("r", {3})).keep == (3,)
    collected = (JOB.removesuffix(".2"),)
    assert rpc.parse_request(rpc.tidy("r", [], collected)).collected == collected
    older = {"schema": 1, "op": "tidy", "run": "r", "keep": []}
    assert rpc.parse_request(older).collected == ()


def test_a_submission_is_understood(make_order):
    job = {"nodes": 2, "time": 60, "queue": "debug", "account": None}
    request = rpc.submit("smol", make_order(), 2, job, dry_run=True)
    ask = rpc.parse_request(json.loads(json.dumps(request)))
    assert ask.job == order_words.JobRequest(nodes=2, time=60.0, queue="debug")
    assert ask.order.task.data == ("ones",)
    assert ask.dry_run
    assert ask.order.problem() is None


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "has schema None; this site agent speaks 1"),
        ({"schema": 2, "op": "probe"}, "has schema 2"),
        ({"schema": 1, "op": "launch"}, "'launch' can't be understood"),
        ({"schema": 1, "op": "poll"}, "run"),
        ({"schema": 1, "op": "probe", "extra": 1}, "extra"),
        (rpc.poll("../r", []), "id of a run"),
        (rpc.poll("r", ["train-0003-polaris-1"]), "no job id"),
        (rpc.poll("r", ["train-0003-polaris-1.0"]), "number of a job"),
        (rpc.poll("r", ["../../x.1"]), "no job id"),
        (rpc.read("r", "x", 1 << 20), "tail_bytes"),
        (rpc.tidy("r", [-1]), "keep"),
        (rpc.tidy("r", [], ["../orders"]), "collected"),
    ],
)
def test_what_can_not_be_understood_is_refused(request_, words):
    with pytest.raises(UsageError) as caught:
        rpc.parse_request(request_)
    assert words in caught.value.message


@pytest.mark.parametrize("word", ["a b", "-x", "a\nb", "", "a;b", "x" * 65])
def test_queues_and_accounts_are_single_words(make_order, word):
    for key in ("queue", "account", "reservation"):
        request = rpc.submit("smol", make_order(), 1, {"time": 60, key: word})
        with pytest.raises(UsageError, match=f"job.{key}"):
            rpc.parse_request(request)


@pytest.mark.parametrize("ranks", [0, 1025])
def test_ranks_have_a_bound(make_order, ranks):
    request = rpc.submit("smol", make_order(), 1, {"time": 1, "ranks_per_node": ranks})
    with pytest.raises(UsageError, match=r"job\.ranks_per_node"):
        rpc.parse_request(request)


@pytest.mark.parametrize("nonce", ["a b", "x" * 65, "../x", 3])
def test_a_nonce_is_one_word(make_order, nonce):
    request = rpc.submit("smol", make_order(nonce=nonce), 1, {"time": 60})
    with pytest.raises(UsageError, match=r"order\.nonce"):
        rpc.parse_request(request)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("lr_scale", wrong) for wrong in (0, -1, float("inf"), float("nan"))),
        *(("proximal", wrong) for wrong in (-0.1, float("inf"), float("nan"))),
        *(("first", wrong) for wrong in (-1, 0.5)),
        *(
            ("control", wrong)
            for wrong in (
                "control/1",
                "version/1",
                "state/control",
                "state/../../x/1",
                "state/control/-1",
                "state/control/1/2",
                "state/control/01",
                "/state/control/1",
                "state/.control/1",
                "state/control/1\n",
            )
        ),
    ],
)
def test_corrections_have_bounds(make_order, field, value):
    request = rpc.submit("smol", make_order(**{field: value}), 1, {"time": 60})
    with pytest.raises(UsageError, match=rf"order\.{field}"):
        rpc.parse_request(request)


def test_an_order_of_before_the_corrections_is_understood(make_order):
    order = make_order(
        first=4, seen=64, lr_scale=0.5, proximal=0.1, control="state/c-a/7"
    )
    assert order_words.Order.model_validate(order).control == "state/c-a/7"
    for field in ("first", "seen", "lr_scale", "proximal", "control"):
        del order[field]
    old = order_words.Order.model_validate(order)
    assert (old.first, old.lr_scale, old.proximal, old.control) == (None, 1, 0, "")


def test_directives_do_not_cross(make_order):
    job = {"time": 60, "directives": ["--output=/etc/passwd"]}
    with pytest.raises(UsageError, match=r"job\.directives"):
        rpc.parse_request(rpc.submit("smol", make_order(), 1, job))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "evaluate"}, "is not of kind evaluate"),
        ({"facility": "aurora"}, "at aurora"),
        ({"steps": None}, "has no steps"),
        (
            {"assignment": "evaluate-0001-polaris-1", "kind": "evaluate"},
            "names no version",
        ),
        *(
            (
                {
                    "assignment": "evaluate-0001-polaris-1",
                    "kind": "evaluate",
                    "version": 0,
                    **asked,
                },
                "corrects no steps",
            )
            for asked in (
                {"lr_scale": 0.5},
                {"proximal": 0.1},
                {"control": "state/control/1"},
            )
        ),
    ],
)
def test_orders_that_contradict_themselves(make_order, fields, words):
    assert words in order_words.Order.model_validate(make_order(**fields)).problem()


@given(JSON)
def test_any_request_is_understood_or_refused(data):
    request = data if isinstance(data, dict) else {"schema": 1, "op": data}
    for asked in (request, {**request, "schema": 1, "op": "poll"}):
        with suppress(UsageError):
            assert isinstance(rpc.parse_request(asked), rpc.Probe | rpc.Poll)


def test_errors_cross_under_their_own_class():
    error = SchedulerError("squeue is away", hint="wait", transient=True)
    with pytest.raises(SchedulerError) as caught:
        rpc.unwrap(json.loads(json.dumps(rpc.refusal(error))))
    assert caught.value.to_json() == error.to_json()
    with pytest.raises(PolicyError):
        rpc.unwrap(rpc.refusal(PolicyError("no")))


def test_data_crosses():
    assert rpc.unwrap(rpc.reply({"a": 1})) == {"a": 1}


@pytest.mark.parametrize(
    "message", [None, [], "ok", {}, {"ok": True}, {"ok": 1, "schema": 1, "data": {}}]
)
def test_other_answers_are_no_replies(message):
    with pytest.raises(GatewayError):
        rpc.unwrap(message)


def test_another_schema_is_lasting():
    with pytest.raises(GatewayError) as caught:
        rpc.unwrap({"schema": 2, "ok": True, "data": {}})
    assert not caught.value.transient


@given(JSON)
def test_unwrap_returns_data_or_raises_an_error(message):
    with suppress(HansaError):
        assert isinstance(rpc.unwrap(message), dict)
