"""What a Globus Transfer task does with files: retried until it works or is too late.

Files are written in place, so a reader can see a part of one. A task that was active
when the service died goes on where its last whole file ended.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from sandbox.faults import spoil
from sandbox.state import Document, State

ACTIVE_PER_USER = 3
"""Tasks of one user that are worked on at a time; the others wait."""
BLOCK = 1 << 20
RETRY = 0.3
"""Seconds until a step that failed is tried again."""
FATAL = ("EXTERNAL_CHECKSUM_MISMATCH", "QUOTA_EXCEEDED")

Item = Document


class Fault(Exception):
    """A step that failed; `code` is the service's word for it."""

    def __init__(self, code: str, details: str = "") -> None:
        super().__init__(code, details)
        self.code, self.details = code, details


class Ended(Exception):
    """The task is over before its work is done."""


def stamp(at: float | None = None) -> str:
    """Return a time as the service writes it."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S+00:00")


def local(state: State, collection: str, path: str) -> Path:
    """Return where a path of a collection lies on this machine.

    Raises:
        Fault: It leads out of the collection, or is denied.
    """
    known = state.get("collections", collection) or {}
    root = Path(known["root"]).resolve()
    path = path.removeprefix("/~")
    place = (root / path.lstrip("/")).resolve()
    if not place.is_relative_to(root):
        raise Fault("PERMISSION_DENIED", "Path not allowed")
    inside = "/" + str(place.relative_to(root))
    for denied in known.get("deny", []):
        if Path(inside).is_relative_to(Path("/") / denied.strip("/")):
            raise Fault("PERMISSION_DENIED", path)
    return place


def check(state: State, collection: str) -> None:
    """Raise a `Fault` if a collection is away."""
    if (state.get("collections", collection) or {}).get("offline"):
        raise Fault("ENDPOINT_ERROR", "connection refused")


def checksum(path: Path, algorithm: str = "md5") -> str:
    """Return a file's checksum in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm.replace("-", "").lower()).hexdigest()


class Workers:
    """Threads that carry tasks out, a few for each user at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Semaphore] = {}

    def resume(self) -> None:
        """Take up the tasks that were active when the service ended."""
        for key, task in self._state.all("transfers").items():
            if task["status"] == "ACTIVE":
                self.start(key)

    def start(self, key: str) -> None:
        """Carry a task out on a thread."""
        threading.Thread(target=self._run, args=(key,), daemon=True).start()

    def _run(self, key: str) -> None:
        task = self._state.get("transfers", key)
        assert task is not None
        with self._turn(task["owner_id"]):
            Work(self._state, key).run()

    def _turn(self, owner: str) -> threading.Semaphore:
        with self._lock:
            fresh = threading.Semaphore(ACTIVE_PER_USER)
            return self._turns.setdefault(owner, fresh)


class Work:
    """One task, while it is worked on."""

    def __init__(self, state: State, key: str) -> None:
        self.state, self.key = state, key
        self.begun = time.monotonic()

    def task(self) -> Document:
        """Return the task as it stands."""
        task = self.state.get("transfers", self.key)
        assert task is not None
        return task

    def set(self, **keys: object) -> None:
        """Change keys of the task."""
        self.state.change("transfers", self.key, lambda it: it.update(keys))

    def add(self, **numbers: int) -> None:
        """Add to numbers of the task."""

        def more(it: Document) -> None:
            for name, number in numbers.items():
                it[name] += number
            seconds = max(time.monotonic() - self.begun, 1e-3)
            it["effective_bytes_per_second"] = int(it["bytes_transferred"] / seconds)

        self.state.change("transfers", self.key, more)

    def event(self, code: str, *, error: bool = False, details: str = "") -> None:
        """Add to what people read of the task."""
        entry = {
            "DATA_TYPE": "event",
            "code": code,
            "description": code.replace("_", " ").lower(),
            "details": details,
            "is_error": error,
            "time": stamp(),
        }
        self.state.change("transfers", self.key, lambda it: it["_events"].append(entry))

    def run(self) -> None:
        """Carry the task out to its end."""
        self.set(nice_status="OK", nice_status_short_description="OK")
        self.event("STARTED")
        try:
            while (done := self.task()["_done"]) < len(self.task()["_items"]):
                self.alive()
                self.attempt(done)
        except Ended as end:
            code, status = end.args
            self.event(code, error=True)
            fatal = {"code": code, "description": code.replace("_", " ").lower()}
            self._end(status, fatal)
        else:
            self.event("SUCCEEDED")
            self._end("SUCCEEDED", None)

    def _end(self, status: str, fatal: Document | None) -> None:
        self.set(
            status=status, fatal_error=fatal, completion_time=stamp(), nice_status=None,
            nice_status_short_description=None, nice_status_details=None, is_ok=None,
            subtasks_pending=0,
        )  # fmt: skip

    def alive(self) -> None:
        """Raise `Ended` if the task was cancelled or its deadline is over."""
        task = self.task()
        if task["_cancel"]:
            raise Ended("CANCELED", "FAILED")
        if time.time() > task["_deadline"]:
            raise Ended("EXPIRED", "FAILED")

    def attempt(self, number: int) -> None:
        """Try one item; a fault is noted and tried again after a while."""
        task = self.task()
        item = task["_items"][number]
        try:
            if task["type"] == "DELETE":
                self.delete(task, item)
            else:
                self.transfer(task, item)
        except OSError as error:
            self.failed(Fault("FILE_ACCESS", str(error)), item)
        except Fault as fault:
            self.failed(fault, item)
        else:
            self.set(
                _done=number + 1, is_ok=True, nice_status="OK",
                nice_status_short_description="OK", nice_status_details=None,
                subtasks_pending=len(task["_items"]) - number - 1,
            )  # fmt: skip

    def failed(self, fault: Fault, item: Item) -> None:
        """Note a fault; skip the item if the task wants that, or wait a little."""
        self.event(fault.code, error=True, details=fault.details)
        skipped = {
            "DATA_TYPE": "skipped_error",
            "error_code": fault.code,
            "error_details": fault.details,
            "source_path": item.get("source_path"),
            "destination_path": item.get("destination_path"),
        }
        if fault.code in FATAL:
            raise Ended(fault.code, "FAILED")
        skippable = fault.code in ("PERMISSION_DENIED", "FILE_NOT_FOUND")
        if self.task()["skip_source_errors"] and skippable:

            def skip(it: Document) -> None:
                it["_skipped"].append(skipped)
                it["_done"] += 1
                it["files_skipped"] += 1

            self.state.change("transfers", self.key, skip)
            return
        self.add(faults=1)
        words = fault.code.replace("_", " ").lower()
        self.set(
            is_ok=False, nice_status=fault.code, nice_status_short_description=words,
            nice_status_details=fault.details,
        )  # fmt: skip
        time.sleep(RETRY)

    def delete(self, task: Document, item: Item) -> None:
        """Delete one path."""
        collection = task["source_endpoint_id"]
        check(self.state, collection)
        place = local(self.state, collection, item["path"])
        if place.is_dir():
            if not task["_recursive"]:
                raise Fault("IS_A_DIRECTORY", item["path"])
            shutil.rmtree(place)
        elif place.exists():
            place.unlink()
        elif not task["_ignore_missing"]:
            raise Fault("FILE_NOT_FOUND", item["path"])

    def transfer(self, task: Document, item: Item) -> None:
        """Copy one file, or a directory with all that is in it."""
        source, target = task["source_endpoint_id"], task["destination_endpoint_id"]
        for collection in (source, target):
            check(self.state, collection)
        here = local(self.state, source, item["source_path"])
        there = local(self.state, target, item["destination_path"])
        if not here.exists():
            raise Fault("FILE_NOT_FOUND", item["source_path"])
        if not here.is_dir():
            self.copy(task, item, here, there)
            return
        if not item.get("recursive"):
            raise Fault("IS_A_DIRECTORY", item["source_path"])
        for path in sorted(here.rglob("*")):
            if path.is_file():
                self.copy(task, item, path, there / path.relative_to(here))

    def copy(self, task: Document, item: Item, here: Path, there: Path) -> None:
        """Copy one file and check what was asked to be checked."""
        if _same(task["sync_level"], here, there):
            self.add(files_skipped=1)
            return
        there.parent.mkdir(parents=True, exist_ok=True)
        self.write(task, here, there)
        if task["preserve_timestamp"]:
            shutil.copystat(here, there)
        algorithm = item.get("checksum_algorithm") or "md5"
        if task["verify_checksum"]:
            self.add(bytes_checksummed=here.stat().st_size)
            if checksum(here, algorithm) != checksum(there, algorithm):
                raise Fault("VERIFY_CHECKSUM", item["destination_path"])
        promised = item.get("external_checksum")
        if promised and checksum(there, algorithm) != promised.lower():
            raise Fault("EXTERNAL_CHECKSUM_MISMATCH", item["destination_path"])
        success = {
            "DATA_TYPE": "successful_transfer",
            "source_path": item["source_path"],
            "destination_path": item["destination_path"],
            "checksum": checksum(there, algorithm),
            "checksum_algorithm": algorithm.upper(),
            "size": there.stat().st_size,
        }
        self.state.change(
            "transfers", self.key, lambda it: it["_successes"].append(success)
        )
        self.add(files_transferred=1)

    def write(self, task: Document, here: Path, there: Path) -> None:
        """Write the bytes, as fast as both collections let them through."""
        target = task["destination_endpoint_id"]
        with here.open("rb") as reader, there.open("wb") as writer:
            while True:
                known = [
                    self.state.get("collections", task[side]) or {}
                    for side in ("source_endpoint_id", "destination_endpoint_id")
                ]
                if known[1].get("full"):
                    raise Fault("QUOTA_EXCEEDED", "No space left on device")
                rates = [one["bytes_per_s"] for one in known if one.get("bytes_per_s")]
                size = max(1, min(BLOCK, int(min(rates) / 10))) if rates else BLOCK
                block = reader.read(size)
                if not block:
                    return
                writer.write(spoil(self.state, target, block))
                writer.flush()
                self.add(bytes_transferred=len(block))
                if rates:
                    time.sleep(len(block) / min(rates))
                for collection in (task["source_endpoint_id"], target):
                    check(self.state, collection)
                self.alive()


def _same(level: int | None, here: Path, there: Path) -> bool:
    """Tell whether a file need not be sent, by the task's `sync_level`."""
    if level is None or not there.exists():
        return False
    one, other = here.stat(), there.stat()
    if level == 0:
        return True
    if one.st_size != other.st_size:
        return False
    if level == 3:
        return checksum(here) == checksum(there)
    return level == 1 or one.st_mtime <= other.st_mtime
