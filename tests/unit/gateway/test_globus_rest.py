"""The requests of the real client, to a service that says what a test wants."""

import json
import pickle
import threading
from base64 import encodebytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import globus_sdk
import pytest
from globus_compute_sdk.serialize import ComputeSerializer

from hansa.core.errors import FacilityError, GatewayError, HansaError, LoginError
from hansa.gateway.globus_rest import Busy, GlobusRest, Outcome
from hansa.login import authorizers

E = "11111111-1111-4111-8111-111111111111"
F = "22222222-2222-4222-8222-222222222222"
T = "33333333-3333-4333-8333-333333333333"


class Server(ThreadingHTTPServer):
    """Answers with `replies`, the last one again and again; keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies = [(200, {}, {})]
        self.asked = []

    def says(self, body, status=200, **headers):
        self.replies = [(status, body, headers)]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        size = int(self.headers.get("Content-Length") or 0)
        sent = json.loads(self.rfile.read(size)) if size else None
        path = self.path.removeprefix("http://localhost:5000")
        self.server.asked.append((self.command, path, sent))
        replies = self.server.replies
        status, body, headers = replies.pop(0) if len(replies) > 1 else replies[0]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 - the base class's

    def log_message(self, *words):
        """Print nothing."""


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def rest(server, monkeypatch):
    """Make a connection of somebody who is logged in, led to the server.

    The SDK's own client can be given no address; so it goes there as by a proxy.
    """
    for name in ("HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "local")
    monkeypatch.setattr(
        authorizers, "authorizer", lambda *_: globus_sdk.AccessTokenAuthorizer("token")
    )
    connection = GlobusRest()
    yield connection
    connection.close()


def test_a_task_is_submitted_as_json_that_wants_json_back(rest, server):
    server.says({"tasks": {F: [T]}, "task_group_id": "g", "endpoint_id": E})
    done = rest.submit(E, F, {"request": {"op": "probe"}, "timeout": 3.0}, None)
    assert (done.task, done.group) == (T, "g")
    ((verb, path, sent),) = server.asked
    assert (verb, path) == ("POST", f"/v3/endpoints/{E}/submit")
    assert sent["result_serializers"] == ["globus_compute_sdk.serialize.JSONData"]
    assert "task_group_id" not in sent
    (payload,) = sent["tasks"][F]
    arguments, named = ComputeSerializer.unpack_buffers(payload)
    assert arguments == "11\n[]"
    assert named == '11\n{"request": {"op": "probe"}, "timeout": 3.0}'


def test_later_tasks_join_the_group_and_may_ask_for_nodes(rest, server):
    group = "44444444-4444-4444-8444-444444444444"
    server.says({"tasks": {F: [T]}, "task_group_id": group})
    rest.submit(E, F, {}, group, {"num_nodes": 2})
    sent = server.asked[0][2]
    assert sent["task_group_id"] == group
    assert sent["resource_specification"] == {"num_nodes": 2}


def of(**about):
    return {"results": {T: {"task_id": T, **about}}}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"status": "waiting-for-ep"}, Outcome("waiting-for-ep")),
        (
            {"status": "success", "result": '11\n{"a": [1]}', "completion_t": "1"},
            Outcome("success", over=True, result={"a": [1]}),
        ),
        (
            {"status": "failed", "exception": "no"},
            Outcome("failed", over=True, failure="no"),
        ),
        (
            {"status": "FAILED", "reason": "why"},
            Outcome("failed", over=True, failure="why"),
        ),
    ],
)
def test_how_tasks_are(rest, server, about, expected):
    server.says(of(**about))
    assert rest.outcomes([T]) == {T: expected}
    assert server.asked == [("POST", "/v2/batch_status", {"task_ids": [T]})]


class Trap:
    """Would raise out of the middle of being unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    "result",
    [
        f"00\n{encodebytes(pickle.dumps(Trap())).decode()}",
        "st\nf:raise SystemExit",
        "11\n{",
        "zz\n1",
        "",
    ],
)
def test_a_result_that_is_not_json_is_refused_and_named(rest, server, result):
    server.says(of(status="success", result=result))
    found = rest.outcomes([T])[T]
    assert found.over
    assert "not JSON" in found.failure
    assert found.result is None


def test_too_many_requests_are_for_the_limiter_and_not_repeated_here(rest, server):
    server.says({"code": "TOO_MANY_REQUESTS"}, 429, Retry_After="7")
    with pytest.raises(Busy) as caught:
        rest.outcomes([T])
    assert caught.value.wait == 7.0
    assert len(server.asked) == 1


def error_of(call) -> HansaError:
    with pytest.raises(HansaError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "kind", "transient", "told"),
    [
        (403, "FUNCTION_NOT_PERMITTED", GatewayError, False, f"the function {F}"),
        (403, "ENDPOINT_ACCESS_FORBIDDEN", GatewayError, False, "hansa whoami"),
        (404, "ENDPOINT_NOT_FOUND", GatewayError, False, "gateway.endpoint"),
        (400, "REQUEST_MALFORMED", GatewayError, False, "their words"),
        (401, "FORBIDDEN", LoginError, True, "hansa login"),
        (503, "SERVICE_UNAVAILABLE", GatewayError, True, "503"),
    ],
)
def test_refusals_are_told_apart(rest, server, status, code, kind, transient, told):
    server.says({"status": "Failed", "code": code, "reason": "their words"}, status)
    error = error_of(lambda: rest.submit(E, F, {}, None))
    assert type(error) is kind
    assert error.transient is transient
    assert told in f"{error.message} {error.hint}"
    assert len(server.asked) <= 2


def test_a_service_that_is_away_is_transient(rest, server):
    server.shutdown()
    server.server_close()
    error = error_of(lambda: rest.status(E))
    assert isinstance(error, FacilityError)
    assert error.transient


@pytest.mark.parametrize("body", [{}, {"tasks": {}}, {"tasks": {F: []}}, []])
def test_nonsense_is_an_error_that_may_pass(rest, server, body):
    server.says(body)
    error = error_of(lambda: rest.submit(E, F, {}, None))
    assert isinstance(error, GatewayError)
    assert error.transient


def test_questions_about_an_endpoint_and_a_function(rest, server):
    server.says({"status": "online", "details": {}})
    assert rest.status(E) == "online"
    server.says({"functions": [F], "restricted": True})
    assert rest.allowed(E) == [F]
    server.says({"functions": [], "restricted": False})
    assert rest.allowed(E) is None
    server.says({"display_name": "polaris"})
    assert rest.endpoint(E) == {"display_name": "polaris"}
    server.says({"function_code": "text"})
    assert rest.function(F) == {"function_code": "text"}


@pytest.mark.parametrize("endpoint", [None, E])
def test_a_function_is_registered_for_all_or_for_one_endpoint(rest, server, endpoint):
    server.says({"function_uuid": F})
    assert rest.register("f", "def f(): ...", "about", endpoint) == F
    ((verb, path, sent),) = server.asked
    assert (verb, path) == ("POST", "/v3/functions")
    assert sent["function_code"] == "def f(): ..."
    assert sent["serialized"] is False
    assert sent.get("public", False) is (endpoint is None)
    assert sent.get("ha_endpoint_id") == endpoint
