"""The web services in one process: ``python -m sandbox.service --dir DIR --port N``.

It may be killed at any moment and started again; nothing is lost. Every request is
written down.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import pika.exceptions
from flask import Flask, Response, g, jsonify, request
from werkzeug.serving import make_server

from sandbox import auth, compute, transfer
from sandbox.broker import Broker
from sandbox.copying import Workers
from sandbox.faults import planned_reply
from sandbox.state import State

OPEN = (
    "/v2/version", "/v2/oauth2/token", "/v2/oauth2/authorize", "/.well-known/",
    "/jwk.json", "/v2/api/identities",
)  # fmt: skip
"""Paths that need no token of their own."""
RATE = 20, 9.5
"""Requests to Globus Compute with one token, in so many seconds (10, less the way)."""


def server_for(path: str) -> str:
    """Return the resource server whose tokens a path wants."""
    if path.startswith("/v0.10/"):
        return auth.TRANSFER
    return auth.AUTH if path.startswith("/v2/oauth2/") else auth.COMPUTE


def make_app(state: State, broker: Broker, workers: Workers, url: str) -> Flask:
    """Make the application with all services in it."""
    app = Flask("sandbox")
    app.register_blueprint(auth.blueprint(state, url))
    app.register_blueprint(compute.blueprint(state, broker))
    app.register_blueprint(transfer.blueprint(state, workers))
    recent: dict[str, list[float]] = {}

    @app.before_request
    def admit() -> transfer.Reply | None:
        g.token, g.user = {}, {}
        plan = planned_reply(state, request.method, request.path)
        g.plan = plan if plan and plan["after"] else None
        if plan and not plan["after"]:
            return jsonify(plan["body"]), plan["status"]
        if request.path.startswith(OPEN):
            return None
        server = server_for(request.path)
        token = auth.caller(state, server)
        if token is None:
            words = "Token is not valid"
            if server == auth.TRANSFER:
                return transfer.error(401, "AuthenticationFailed", words)
            return compute.error(401, "FORBIDDEN", words)
        g.token, g.user = token, state.get("users", token["user"])
        if server == auth.COMPUTE and too_many(state, recent):
            return compute.error(429, "TOO_MANY_REQUESTS", "20 requests in 10 seconds")
        return None

    @app.after_request
    def note(reply: Response) -> Response:
        if g.plan:
            reply = jsonify(g.plan["body"])
            reply.status_code = g.plan["status"]
        state.note(
            "requests", method=request.method, path=request.path,
            user=g.user.get("sub"), status=reply.status_code,
            agent=request.headers.get("X-Globus-Client-Info", ""),
        )  # fmt: skip
        return reply

    @app.errorhandler(pika.exceptions.AMQPError)
    def no_broker(_problem: Exception) -> transfer.Reply:
        return compute.error(503, "SERVICE_UNAVAILABLE", "The queues are away")

    return app


def too_many(state: State, recent: dict[str, list[float]]) -> bool:
    """Count a request; tell whether it is over the rate limit."""
    word = request.headers["Authorization"]
    most, seconds = RATE
    now = time.monotonic()
    mine = [at for at in recent.get(word, []) if now - at < seconds]
    if len(mine) >= most and not (state.get("settings", "rate") or {}).get("off"):
        return True
    recent[word] = [*mine, now]
    return False


def main() -> None:
    """Serve until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--amqp", default="")
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    state = State(given.dir / "state.db")
    broker = Broker(given.amqp, state)
    workers = Workers(state)
    app = make_app(state, broker, workers, f"http://127.0.0.1:{given.port}")
    server = make_server("127.0.0.1", given.port, app, threaded=True)
    if given.amqp:
        broker.listen()
    workers.resume()
    server.serve_forever()


if __name__ == "__main__":
    main()
