"""Globus Compute's web service: functions, endpoints, tasks.

Tasks go to real endpoints by way of a real RabbitMQ (`broker.py`). For every caller and
configuration an endpoint starts one user endpoint, which does the work.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from sandbox.auth import identity
from sandbox.broker import Broker
from sandbox.state import Document, State

Reply = Response | tuple[Response, int]
PAYLOAD = 10 * 1024 * 1024
"""Bytes that one request may have."""


def error(status: int, code: str, reason: str) -> Reply:
    """Return an error as the service words it."""
    body = {"status": "Failed", "code": code, "error_args": [], "reason": reason}
    return jsonify({**body, "http_status_code": status}), status


def unknown(kind: str, key: str) -> Reply:
    """Return that something does not exist."""
    return error(404, f"{kind.upper()}_NOT_FOUND", f"{kind.title()} {key} not found")


def blueprint(state: State, broker: Broker) -> Blueprint:
    """Make the routes of Globus Compute."""
    routes = Blueprint("compute", __name__)
    _functions(routes, state)
    Endpoints(state, broker).add(routes)
    _tasks(routes, state)

    @routes.get("/v2/version")
    def version() -> Reply:
        least = {"min_ep_version": "2.0.0", "min_sdk_version": "2.0.0"}
        return jsonify({"api": "sandbox", **least})

    @routes.get("/v2/get_amqp_result_connection_url")
    def results_url() -> Reply:
        prefix = f"{g.user['sub']}."
        return jsonify({"queue_prefix": prefix, "connection_url": broker.url})

    @routes.post("/v3/endpoints/<endpoint>/submit")
    def submit(endpoint: str) -> Reply:
        return _submit(state, broker, endpoint)

    return routes


def _functions(routes: Blueprint, state: State) -> None:
    @routes.post("/v3/functions")
    @routes.post("/v2/functions")
    def register_function() -> Reply:
        key = str(uuid.uuid4())
        state.put("functions", key, {**request.get_json(), "owner": g.user["sub"]})
        return jsonify({"function_uuid": key})

    @routes.get("/v2/functions/<key>")
    def get_function(key: str) -> Reply:
        function = state.get("functions", key)
        if function is None:
            return unknown("function", key)
        return jsonify({"function_uuid": key, **function})

    @routes.delete("/v2/functions/<key>")
    def delete_function(key: str) -> Reply:
        function = state.get("functions", key)
        if function is None or function["owner"] != g.user["sub"]:
            return unknown("function", key)
        state.drop("functions", key)
        return jsonify({"result": 302})


class Endpoints:
    """What clients and endpoints themselves ask of endpoints."""

    def __init__(self, state: State, broker: Broker) -> None:
        self._state, self._broker = state, broker

    def add(self, routes: Blueprint) -> None:
        """Add the routes."""
        routes.post("/v3/endpoints")(self.register)
        routes.put("/v3/endpoints/<key>")(self.register)
        routes.get("/v2/endpoints")(self.mine)
        routes.get("/v2/endpoints/<key>")(self.get)
        routes.get("/v2/endpoints/<key>/status")(self.status)
        routes.get("/v3/endpoints/<key>/allowed_functions")(self.allowed_functions)
        routes.delete("/v2/endpoints/<key>", endpoint="delete_endpoint")(self.delete)

    def register(self, key: str = "") -> Reply:
        known = self._state.get("endpoints", key) if key else None
        if known is not None and known["owner"] != g.user["sub"]:
            return error(403, "ENDPOINT_ACCESS_FORBIDDEN", "not the owner")
        key = key or str(uuid.uuid4())
        facts = {**request.get_json(), "owner": g.user["sub"], "uuid": key}
        self._state.put("endpoints", key, facts)
        return jsonify(self._broker.command_queues(key))

    def mine(self) -> Reply:
        return jsonify([
            {"uuid": key, "name": one.get("endpoint_name"), "owner": one["owner"]}
            for key, one in self._state.all("endpoints").items()
            if one["owner"] == g.user["sub"] or request.args.get("role") == "any"
        ])  # fmt: skip

    def get(self, key: str) -> Reply:
        known = self._state.get("endpoints", key)
        return unknown("endpoint", key) if known is None else jsonify(known)

    def status(self, key: str) -> Reply:
        if self._state.get("endpoints", key) is None:
            return unknown("endpoint", key)
        beat = self._state.get("heartbeats", key) or {}
        word = "online" if alive(beat) else "offline"
        return jsonify({"status": word, "details": beat.get("report", {})})

    def allowed_functions(self, key: str) -> Reply:
        known = self._state.get("endpoints", key)
        if known is None:
            return unknown("endpoint", key)
        names = known.get("allowed_functions")
        facts = {"endpoint_id": key, "restricted": names is not None}
        return jsonify({**facts, "functions": names or []})

    def delete(self, key: str) -> Reply:
        known = self._state.get("endpoints", key)
        if known is None or known["owner"] != g.user["sub"]:
            return unknown("endpoint", key)
        self._state.drop("endpoints", key)
        return jsonify({"result": 302})


def alive(beat: Document) -> bool:
    """Tell from an endpoint's last heartbeat whether it is online."""
    period = beat.get("period", 0)
    return period > 0 and time.time() - beat["at"] < 2 * period + 5


# --- submitting ---------------------------------------------------------------------


def _submit(state: State, broker: Broker, endpoint: str) -> Reply:
    if (request.content_length or 0) > PAYLOAD:
        return error(413, "TASK_PAYLOAD_TOO_LARGE", "The payload exceeds 10 MB")
    asked = request.get_json()
    known = state.get("endpoints", endpoint)
    if known is None:
        return unknown("endpoint", endpoint)
    if (problem := _forbidden(state, known, asked["tasks"])) is not None:
        return problem
    group = asked.get("task_group_id") or str(uuid.uuid4())
    if (state.get("groups", group) or {}).get("owner", g.user["sub"]) != g.user["sub"]:
        return error(403, "TASKGROUP_ACCESS_FORBIDDEN", "not the owner of the group")
    state.put("groups", group, {"owner": g.user["sub"]})
    queue = f"{g.user['sub']}.{group}" if asked.get("create_queue") else None
    worker, command = _user_endpoint(endpoint, asked)
    common = {"worker": worker, "endpoint": endpoint, "group": group, "queue": queue}
    messages = []
    made: dict[str, list[str]] = {}
    for function, payloads in asked["tasks"].items():
        for payload in payloads:
            key = str(uuid.uuid4())
            made.setdefault(function, []).append(key)
            task = {**common, "task_id": key, "function": function}
            task |= {"owner": g.user["sub"], "status": "waiting-for-ep"}
            task |= {"at": time.time(), "payload": payload}
            state.put("tasks", key, task)
            messages.append((task, _code(state, function) + payload))
    broker.send_work(endpoint, worker, command, messages, asked, queue)
    reply = {"tasks": made, "task_group_id": group, "endpoint_id": endpoint}
    return jsonify({**reply, "request_id": str(uuid.uuid4())}), 202


def _forbidden(state: State, endpoint: Document, functions: Any) -> Reply | None:
    """Return why the caller may not run these functions there, if that is so."""
    mine = g.user["sub"]
    allowed = endpoint.get("allowed_functions")
    if (state.get("settings", "allow_list") or {}).get("skip"):
        allowed = None
    for key in functions:
        function = state.get("functions", key)
        if function is None:
            return unknown("function", key)
        if allowed is not None and key not in allowed:
            words = f"Function {key} not permitted on endpoint {endpoint['uuid']}"
            return error(403, "FUNCTION_NOT_PERMITTED", words)
        if function["owner"] != mine and not function.get("public"):
            return error(403, "FUNCTION_ACCESS_FORBIDDEN", f"Function {key} is private")
    if endpoint["owner"] != mine and not endpoint.get("multi_user"):
        return error(403, "ENDPOINT_ACCESS_FORBIDDEN", "The endpoint is private")
    return None


def _user_endpoint(endpoint: str, asked: Document) -> tuple[str, Document]:
    """Return the id of the caller's user endpoint, and the order to start it."""
    options = asked.get("user_endpoint_config") or {}
    words = json.dumps(options, sort_keys=True)
    mark = hashlib.sha256(words.encode()).hexdigest()[:12]
    worker = str(uuid.uuid5(uuid.UUID(endpoint), f"{g.user['sub']}:{mark}"))
    return worker, {
        "command": "cmd_start_endpoint",
        "args": [],
        "kwargs": {
            "name": f"uep.{endpoint}.{mark}",
            "user_opts": options,
            "user_runtime": asked.get("user_runtime") or {},
        },
        "globus_effective_identity": g.user["sub"],
        "globus_username": g.user["username"],
        "globus_identity_set": [identity(g.user)],
    }


def _code(state: State, key: str) -> str:
    """Return a function's code as endpoints read it.

    What was registered as source text is wrapped as the client's own strategy for
    plain source does it.
    """
    function = state.get("functions", key)
    assert function is not None
    code: str = function["function_code"]
    if function.get("serialized", True):
        return code
    body = f"st\n{function['function_name']}:{code}"
    return f"{len(body)}\n{body}"


# --- tasks --------------------------------------------------------------------------

SHOWN = ("task_id", "status", "result", "exception", "completion_t", "details")


def shown(task: Document) -> Document:
    """Return what the service tells of a task."""
    return {key: task[key] for key in SHOWN if task.get(key) is not None}


def _tasks(routes: Blueprint, state: State) -> None:
    def mine(key: str) -> Document | None:
        task = state.get("tasks", key)
        return task if task and task["owner"] == g.user["sub"] else None

    @routes.get("/v2/tasks/<key>")
    def get_task(key: str) -> Reply:
        task = mine(key)
        return unknown("task", key) if task is None else jsonify(shown(task))

    @routes.post("/v2/batch_status")
    def batch() -> Reply:
        found = {key: mine(key) for key in request.get_json()["task_ids"]}
        results = {key: shown(task) for key, task in found.items() if task}
        return jsonify({"response": "batch", "results": results})

    @routes.get("/v2/taskgroup/<group>")
    def group(group: str) -> Reply:
        tasks = [
            {"id": key}
            for key, task in state.all("tasks").items()
            if task["group"] == group and task["owner"] == g.user["sub"]
        ]
        return jsonify({"taskgroup_id": group, "tasks": tasks})
