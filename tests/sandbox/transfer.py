"""Globus Transfer, as its real client sees it: collections are folders here."""

from __future__ import annotations

import stat as status
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from flask import Blueprint, Response, g, jsonify, request

from sandbox.auth import TRANSFER_SCOPE, data_access
from sandbox.copying import Fault, Workers, check, local, stamp
from sandbox.state import Document, State

Reply = Response | tuple[Response, int]
DAY = 86_400.0


def error(status: int, code: str, message: str, **more: object) -> Reply:
    """Return an error as the service words it."""
    body = {"code": code, "message": message, **_envelope(), **more}
    return jsonify(body), status


def _envelope() -> Document:
    return {"request_id": uuid.uuid4().hex[:9], "resource": request.path}


def done(kind: str, code: str, message: str, **more: object) -> Response:
    """Return the reply to something that was done."""
    body = {"DATA_TYPE": kind, "code": code, "message": message}
    return jsonify({**body, **_envelope(), **more})


def refused(state: State, *collections: str) -> Reply | None:
    """Return why the caller may not use these collections, if that is so."""
    wanting = []
    for name in collections:
        known = state.get("collections", name)
        if known is None:
            return error(404, "EndpointNotFound", f"No such endpoint '{name}'")
        if known["data_access"] and data_access(name) not in g.token["scope"]:
            wanting.append(name)
        asked = known["session"]
        held = g.token["session"]
        if any(name not in held for name in asked):
            return error(
                403, "AuthorizationRequired", "This collection needs another session",
                authorization_parameters={"session_message": "Sign in again", **asked},
            )  # fmt: skip
    if not wanting:
        return None
    dependent = " ".join(f"*{data_access(name)}" for name in wanting)
    return error(
        403, "ConsentRequired", "Missing required data_access consent",
        required_scopes=[f"{TRANSFER_SCOPE}[{dependent}]"],
    )  # fmt: skip


def blueprint(state: State, workers: Workers) -> Blueprint:
    """Make the routes of Globus Transfer."""
    routes = Blueprint("transfer", __name__, url_prefix="/v0.10")
    _submissions(routes, state, workers)
    Tasks(state).add(routes)
    Files(state).add(routes)
    return routes


# --- submitting ---------------------------------------------------------------------


def _submissions(routes: Blueprint, state: State, workers: Workers) -> None:
    @routes.get("/submission_id")
    def submission_id() -> Reply:
        return jsonify({"DATA_TYPE": "submission_id", "value": str(uuid.uuid4())})

    @routes.post("/transfer")
    @routes.post("/delete")
    def submit() -> Reply:
        asked = request.get_json()
        kind = request.path.rpartition("/")[2]
        if not asked.get("DATA"):
            code = f"ClientError.BadRequest.No{kind.title()}Items"
            return error(400, code, f"A {kind} requires at least one item")
        if kind == "transfer":
            ends = [asked["source_endpoint"], asked["destination_endpoint"]]
        else:
            ends = [asked["endpoint"]]
        if (problem := refused(state, *ends)) is not None:
            return problem
        with state.alone():
            key = _known(state, asked["submission_id"])
            code = "Duplicate" if key else "Accepted"
            if key is None:
                key = str(uuid.uuid4())
                state.put("transfers", key, _new(key, kind, ends, asked))
        label = asked.get("label")
        state.note("submissions", code=code, task=key, type=kind, label=label)
        if code == "Accepted":
            workers.start(key)
        message = f"The {kind} has been accepted and a task has been created"
        reply = done(
            f"{kind}_result", code, message, task_id=key,
            submission_id=asked["submission_id"],
        )  # fmt: skip
        return reply, 202


def _known(state: State, submission: str) -> str | None:
    """Return the caller's task that came of a submission id, if there is one."""
    for key, task in state.all("transfers").items():
        if task["_submission"] == submission and task["owner_id"] == g.user["sub"]:
            return key
    return None


COPIED = (
    "label", "sync_level", "verify_checksum", "encrypt_data", "preserve_timestamp",
    "skip_source_errors", "fail_on_quota_errors", "delete_destination_extra",
)  # fmt: skip


def _new(key: str, kind: str, ends: list[str], asked: Document) -> Document:
    """Return a new task; what begins with ``_`` is not shown."""
    deadline = asked.get("deadline")
    until = time.time() + DAY if deadline is None else _seconds(deadline)
    return {
        "DATA_TYPE": "task",
        "task_id": key,
        "type": kind.upper(),
        "status": "ACTIVE",
        "owner_id": g.user["sub"],
        "request_time": stamp(),
        "completion_time": None,
        "deadline": stamp(until),
        "source_endpoint_id": ends[0],
        "destination_endpoint_id": ends[1] if len(ends) > 1 else None,
        "nice_status": "Queued",
        "nice_status_short_description": "queued",
        "nice_status_details": None,
        "is_ok": True,
        "is_paused": False,
        "fatal_error": None,
        "faults": 0,
        "files": len(asked["DATA"]),
        "files_skipped": 0,
        "files_transferred": 0,
        "directories": 0,
        "bytes_transferred": 0,
        "bytes_checksummed": 0,
        "effective_bytes_per_second": 0,
        "subtasks_total": len(asked["DATA"]),
        "subtasks_pending": len(asked["DATA"]),
        "history_deleted": False,
        **{name: asked.get(name) for name in COPIED},
        "_submission": asked["submission_id"],
        "_items": asked["DATA"],
        "_done": 0,
        "_cancel": False,
        "_deadline": until,
        "_events": [],
        "_successes": [],
        "_skipped": [],
        "_recursive": asked.get("recursive", False),
        "_ignore_missing": asked.get("ignore_missing", False),
    }


def _seconds(moment: str) -> float:
    """Return a time of the client in seconds; without a zone it is UTC."""
    found = datetime.fromisoformat(moment)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


# --- tasks --------------------------------------------------------------------------


def shown(task: Document) -> Document:
    """Return what the service tells of a task."""
    return {key: value for key, value in task.items() if not key.startswith("_")}


def listed(kind: str, entries: list[Document]) -> Response:
    """Return a page that has everything."""
    return jsonify({
        "DATA_TYPE": kind, "DATA": entries, "length": len(entries), "limit": 1000,
        "offset": 0, "total": len(entries), "marker": 0, "next_marker": None,
        "has_next_page": False,
    })  # fmt: skip


LISTS = {
    "event_list": "_events",
    "successful_transfers": "_successes",
    "skipped_errors": "_skipped",
}


class Tasks:
    """What clients ask of tasks."""

    def __init__(self, state: State) -> None:
        self._state = state

    def add(self, routes: Blueprint) -> None:
        """Add the routes."""
        routes.get("/task_list")(self.all)
        routes.get("/task/<key>")(self.get)
        routes.put("/task/<key>")(self.update)
        routes.post("/task/<key>/cancel")(self.cancel)
        routes.get("/task/<key>/<what>")(self.lists)

    def _mine(self, key: str) -> Document | None:
        task = self._state.get("transfers", key)
        return task if task and task["owner_id"] == g.user["sub"] else None

    def _missing(self, key: str) -> Reply:
        return error(404, "ClientError.NotFound", f"task ID not found '{key}'")

    def all(self) -> Reply:
        found = [
            shown(task)
            for task in reversed(self._state.all("transfers").values())
            if task["owner_id"] == g.user["sub"]
        ]
        return listed("task_list", found)

    def get(self, key: str) -> Reply:
        task = self._mine(key)
        return self._missing(key) if task is None else jsonify(shown(task))

    def update(self, key: str) -> Reply:
        asked = request.get_json()
        if self._mine(key) is None:
            return self._missing(key)

        def change(task: Document) -> None:
            task["label"] = asked.get("label", task["label"])
            if asked.get("deadline"):
                task["_deadline"] = _seconds(asked["deadline"])
                task["deadline"] = stamp(task["_deadline"])

        self._state.change("transfers", key, change)
        return done("result", "Updated", "The task has been updated")

    def cancel(self, key: str) -> Reply:
        task = self._mine(key)
        if task is None:
            return self._missing(key)
        if task["status"] != "ACTIVE":
            words = "The task completed before the cancel request was processed."
            return done("result", "TaskComplete", words)
        self._state.change("transfers", key, lambda it: it.update(_cancel=True))
        return done("result", "Canceled", "The task has been cancelled successfully.")

    def lists(self, key: str, what: str) -> Reply:
        task = self._mine(key)
        if task is None or what not in LISTS:
            return self._missing(key)
        entries = task[LISTS[what]]
        return listed(what, entries[::-1] if what == "event_list" else entries)


# --- operations on files ------------------------------------------------------------


def _entry(path: Path, name: str) -> Document:
    """Return what a listing says of one file or directory."""
    link = str(path.readlink()) if path.is_symlink() else None
    facts = path.stat() if path.exists() else path.lstat()
    kinds = {status.S_IFDIR: "dir", status.S_IFREG: "file"}
    return {
        "DATA_TYPE": "file",
        "name": name,
        "type": kinds.get(status.S_IFMT(facts.st_mode), "other"),
        "size": facts.st_size,
        "permissions": f"{facts.st_mode & 0o7777:04o}",
        "last_modified": stamp(facts.st_mtime).replace("T", " "),
        "user": "sandbox",
        "group": "sandbox",
        "link_target": link,
    }


class Files:
    """What clients do with files, without a task."""

    def __init__(self, state: State) -> None:
        self._state = state

    def add(self, routes: Blueprint) -> None:
        """Add the routes."""
        routes.get("/endpoint/<collection>")(self.collection)
        base = "/operation/endpoint/<collection>"
        for verb, work in (("ls", self.ls), ("stat", self.stat)):
            routes.get(f"{base}/{verb}", endpoint=verb)(self._guarded(work))
        for verb, work in (("mkdir", self.mkdir), ("rename", self.rename)):
            routes.post(f"{base}/{verb}", endpoint=verb)(self._guarded(work))

    def _guarded(self, work: Callable[[str], Reply]) -> Callable[[str], Reply]:
        """Return an operation that words what goes wrong."""

        def operate(collection: str) -> Reply:
            if (problem := refused(self._state, collection)) is not None:
                return problem
            try:
                check(self._state, collection)
                return work(collection)
            except Fault as fault:
                if fault.code == "ENDPOINT_ERROR":
                    code = "ExternalError.DirListingFailed.ConnectFailed"
                    return error(502, code, fault.details)
                return error(403, "EndpointPermissionDenied", fault.details)
            except OSError as trouble:
                return error(502, "ExternalError.OperationFailed", str(trouble))

        return operate

    def collection(self, collection: str) -> Reply:
        known = self._state.get("collections", collection)
        if known is None:
            words = f"No such endpoint '{collection}'"
            return error(404, "EndpointNotFound", words)
        return jsonify({
            "DATA_TYPE": "endpoint",
            "id": collection,
            "display_name": known["name"],
            "entity_type": "GCSv5_mapped_collection",
            "high_assurance": False,
            "force_encryption": False,
            "disable_verify": False,
            "default_directory": "/",
            "acl_available": False,
            "non_functional": bool(known["offline"]),
        })  # fmt: skip

    def ls(self, collection: str) -> Reply:
        path = request.args.get("path", "/")
        place = local(self._state, collection, path)
        if not place.exists():
            return error(404, "ClientError.NotFound", "Directory not found")
        found = sorted(place.iterdir()) if place.is_dir() else [place]
        return jsonify({
            "DATA_TYPE": "file_list",
            "DATA": [_entry(one, one.name) for one in found],
            "path": path,
            "endpoint": collection,
            "length": len(found),
            "total": len(found),
            "offset": 0,
            "limit": 100_000,
        })  # fmt: skip

    def stat(self, collection: str) -> Reply:
        place = local(self._state, collection, request.args["path"])
        if not place.exists():
            return error(404, "NotFound", "Path not found")
        return jsonify(_entry(place, place.name))

    def mkdir(self, collection: str) -> Reply:
        place = local(self._state, collection, request.get_json()["path"])
        if place.exists():
            code = "ExternalError.MkdirFailed.Exists"
            return error(502, code, "Path already exists")
        place.mkdir()
        words = "The directory was created successfully"
        return done("mkdir_result", "DirectoryCreated", words), 202

    def rename(self, collection: str) -> Reply:
        asked = request.get_json()
        old = local(self._state, collection, asked["old_path"])
        new = local(self._state, collection, asked["new_path"])
        if not old.exists():
            return error(404, "ClientError.NotFound", "old_path not found")
        old.rename(new)
        return done("result", "FileRenamed", "File or directory renamed")
