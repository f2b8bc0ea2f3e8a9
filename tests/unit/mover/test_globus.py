"""What is special to Globus Transfer, by its real client; the rest is in the contract.

The service is the sandbox's: real HTTP on loopback, troubles on request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import globus
import pytest
from pydantic import ValidationError

from hansa.core.errors import GatewayError, LoginError, StorageFull, TransferError
from hansa.core.files import FileRecord
from hansa.core.remarks import OK, PROBLEM, UNKNOWN
from hansa.mover import globus_check, globus_queue, globus_service
from hansa.mover.base import Damaged, Ended, Place, Submission
from hansa.mover.globus import GlobusMover
from hansa.mover.globus_options import GlobusOptions

PLACE = "run/versions/3"
DATA = os.urandom(300_000)
ID = "aaaaaaaa-0000-4000-8000-00000000000a"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with globus.sandbox(tmp_path_factory.mktemp("globus"), compute=False) as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch, service):
    for name, value in service.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(globus_queue, "FIRST_S", 0.03)
    monkeypatch.setattr(globus_service.PACE, "most", 10_000)


class FileLog:
    """A log on the disk, as the journal is one."""

    closed = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self):
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def open(self):
        over = {one["ticket"] for one in self.lines() if "outcome" in one}
        return tuple(
            Submission(**{**one, "places": tuple(one["places"])})
            for one in self.lines()
            if "outcome" not in one and one["ticket"] not in over
        )

    async def submitted(self, submission):
        self._write(submission)

    async def ended(self, ended):
        self._write(ended)

    def _write(self, what: Submission | Ended) -> None:
        names = what.__dataclass_fields__
        with self.path.open("a") as file:
            file.write(json.dumps({name: getattr(what, name) for name in names}) + "\n")


class Bench:
    """A server, a facility, and what the service does between them."""

    def __init__(self, service, root: Path, *, data_access: bool = False) -> None:
        self.service, self.root = service, root
        self.here, self.mail = root / "server", root / "mail"
        self.source = self.here / "runs/run/versions/3"
        self.server = service.add_collection(self.here, "dtn")
        self.site = service.add_collection(
            self.mail / "scratch", "eagle", data_access=data_access
        )
        self.mailbox = self.mail / "scratch/hansa"
        self.mailbox.mkdir()
        self.log = FileLog(root / "log.jsonl")
        self.seen = []
        self.react = lambda progress: None
        self.before = len(service.transfers())

    def options(self, **changes):
        here = {"collection": self.server, "root": str(self.here), "path": "/"}
        plain = {"collection": self.site, "path": "/hansa", "here": here}
        return {**plain, **changes}

    def mover(self, **changes):
        place = Place(
            mailbox=self.mailbox,
            facility="polaris",
            log=self.log,
            watch=self._watch,
        )
        return GlobusMover(GlobusOptions.model_validate(self.options(**changes)), place)

    def _watch(self, progress):
        self.seen.append(progress)
        self.react(progress)

    async def until(self, true) -> list:
        """Return what of this bench's tasks is under way, once that holds of one."""
        async with asyncio.timeout(60):
            while True:
                found = [one for one in self.tasks if one["status"] == "ACTIVE"]
                if any(true(one) for one in found):
                    return found
                await asyncio.sleep(0.02)

    def do(self, verb, *arguments, **changes):
        async def work():
            mover = self.mover(**changes)
            try:
                return await getattr(mover, verb)(*arguments)
            finally:
                await mover.close()

        return asyncio.run(work())

    def put(self, files=None, place=PLACE, source=None, **changes):
        return self.do("put", source or self.source, place, files or FILES, **changes)

    def fill(self, folder=None, data=DATA):
        folder = folder or self.source
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(data)
        (folder / "manifest.json").write_text("{}")
        return {"a.safetensors": record(data)}

    @property
    def tasks(self):
        return self.service.transfers()[self.before :]

    def sent(self):
        """Return the names of the files that were sent, in order."""
        return [
            Path(one["destination_path"]).name
            for task in self.tasks
            for one in task["_successes"]
        ]


def record(data: bytes) -> FileRecord:
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


FILES = {"a.safetensors": record(DATA)}


@pytest.fixture
def bench(service, tmp_path):
    made = Bench(service, tmp_path)
    made.fill()
    return made


def arrived(bench, place=PLACE):
    return (bench.mailbox / place / "a.safetensors").read_bytes() == DATA


# --- options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("collection", "polaris", "no collection's UUID"),
        ("path", "eagle/proj", "begin with '/'"),
        ("path", "/eagle/../etc", "leave '..' out"),
        ("deadline", "1s", "greater than or equal to 60"),
    ],
)
def test_options_that_can_not_be_meant(key, value, said):
    here = {"collection": ID, "root": "/r", "path": "/p"}
    good = {"collection": ID, "path": "/~/hansa", "here": here}
    assert GlobusOptions.model_validate({**good, "deadline": "2h"}).deadline == 7200
    with pytest.raises(ValidationError, match=said):
        GlobusOptions.model_validate({**good, key: value})


def test_a_source_that_the_collection_does_not_show(bench, tmp_path):
    bench.fill(tmp_path / "elsewhere")
    with pytest.raises(TransferError, match="outside of") as caught:
        bench.put(source=tmp_path / "elsewhere")
    assert not caught.value.transient
    assert "mover.here.root" in caught.value.hint
    assert "mover.here.path" in caught.value.hint
    assert bench.tasks == []


# --- what is asked of the service -------------------------------------------------


def test_what_a_submission_asks_for(bench):
    bench.put(deadline="3h")
    (task,) = bench.tasks
    wanted = {"verify_checksum": True, "encrypt_data": True, "sync_level": 3}
    wanted["fail_on_quota_errors"] = True
    assert {name: task[name] for name in wanted} == wanted
    assert 2.9 * 3600 < task["_deadline"] - time.time() < 3.1 * 3600
    items = {Path(one["source_path"]).name: one for one in task["_items"]}
    assert items["a.safetensors"]["external_checksum"] == FILES["a.safetensors"].sha256
    assert {one["checksum_algorithm"] for one in items.values()} == {"sha256"}
    (noted, ended) = bench.log.lines()
    assert noted["ticket"] == task["_submission"]
    assert noted["ticket"] in task["label"]
    assert (noted["places"], ended["outcome"]) == ([PLACE], "done")
    assert ended["bytes"] == len(DATA) + 2


def test_all_that_waits_goes_in_one_task(bench, service):
    service.faults.slow(bench.server, 500_000)
    folders = [bench.here / f"runs/run/versions/{n}" for n in (4, 5, 6)]
    for folder in folders:
        bench.fill(folder)

    async def work():
        mover = bench.mover()
        first = asyncio.create_task(mover.put(bench.source, PLACE, FILES))
        await bench.until(lambda task: True)
        rest = [mover.put(one, f"run/versions/{one.name}", FILES) for one in folders]
        moved = await asyncio.gather(first, *rest)
        await mover.close()
        return moved

    moved = asyncio.run(work())
    assert [len(task["_items"]) for task in bench.tasks] == [2, 6]
    assert {one.bytes for one in moved} == {len(DATA) + 2}
    assert all(arrived(bench, f"run/versions/{n}") for n in (3, 4, 5, 6))
    assert sorted(one.name for one in (bench.mailbox / "run/versions").iterdir()) == [
        "3", "4", "5", "6",
    ]  # fmt: skip


def test_progress_is_told_until_the_end(bench, service):
    service.faults.slow(bench.server, 100_000)

    def hurry(seen):
        if 0 < seen.bytes < seen.total:
            service.faults.slow(bench.server, 0)

    bench.react = hurry
    bench.put()
    total = len(DATA) + 2
    assert any(0 < one.bytes < total and one.total == total for one in bench.seen)
    assert any(one.rate > 0 for one in bench.seen)
    assert bench.seen[-1].total == 0


def test_calls_keep_to_the_pace(monkeypatch):
    now, waits = [100.0], []

    async def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(globus_service.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(globus_service.asyncio, "sleep", sleep)
    pace = globus_service.Pace(2, 10.0)

    async def work():
        for _ in range(3):
            await pace.turn()
            now[0] += 1.0

    work_ = work()
    with pytest.raises(StopIteration):
        work_.send(None)
    assert waits == [8.0]


# --- troubles ---------------------------------------------------------------------


def test_a_corrupted_block_is_sent_again(bench, service):
    service.faults.corrupt(bench.site)
    moved = bench.put()
    assert arrived(bench)
    assert service.faults.corrupted(bench.site) == 1
    assert bench.log.lines()[-1]["faults"] == 1
    assert moved.bytes == len(DATA) + 2
    assert bench.log.lines()[-1]["bytes"] > moved.bytes


def test_a_refused_path_is_shown_and_waited_for(bench, service, caplog):
    service.faults.deny(bench.server, "/runs")

    def mend(progress):
        if progress.status:
            service.faults.deny(bench.server)

    bench.react = mend
    with caplog.at_level(logging.WARNING):
        bench.put()
    assert arrived(bench)
    assert any(one.status.startswith("PERMISSION_DENIED (") for one in bench.seen)
    assert "app.globus.org" in caplog.text
    assert bench.log.lines()[-1]["faults"] >= 1


def test_a_full_facility_is_told_as_such(bench, service):
    service.faults.full(bench.site)
    with pytest.raises(StorageFull, match="polaris"):
        bench.put()
    assert not (bench.mailbox / PLACE).exists()
    ended = bench.log.lines()[-1]
    assert ended["outcome"] == "failed"
    assert "No space" in ended["reason"]
    service.faults.full(bench.site, full=False)
    bench.put()
    assert arrived(bench)


def test_a_full_server_is_told_and_nothing_is_visible(bench, service):
    bench.fill(bench.mailbox / "run/updates/a")
    target = bench.source.parent.parent / "updates/a"
    service.faults.full(bench.server)
    with pytest.raises(StorageFull, match="the server"):
        bench.do("get", "run/updates/a", target, FILES)
    assert not target.exists()
    service.faults.full(bench.server, full=False)
    assert bench.do("get", "run/updates/a", target, FILES).bytes > 0
    assert (target / "a.safetensors").read_bytes() == DATA


def test_past_the_deadline_it_is_tried_again_without_what_arrived(bench, service):
    (bench.source / "b.safetensors").write_bytes(DATA)
    files = {**FILES, "b.safetensors": record(DATA)}
    denied = "/runs/run/versions/3/b.safetensors"
    service.faults.deny(bench.server, denied)

    def expire(progress):
        if progress.faults:
            (task,) = bench.tasks
            service.state.change(
                "transfers", task["task_id"], lambda it: it.update(_deadline=0)
            )

    bench.react = expire
    with pytest.raises(TransferError, match="before the deadline") as caught:
        bench.put(files)
    assert caught.value.transient
    assert "PERMISSION_DENIED" in caught.value.message
    assert not (bench.mailbox / PLACE).exists()
    service.faults.deny(bench.server)
    bench.react = lambda progress: None
    moved = bench.put(files)
    assert bench.sent() == ["a.safetensors", "b.safetensors", "manifest.json"]
    assert moved.bytes == len(DATA) + 2
    assert len({one["ticket"] for one in bench.log.lines()}) == 2


def test_a_missing_consent_names_the_command_and_waits(service, tmp_path):
    bench = Bench(service, tmp_path, data_access=True)
    bench.fill()
    with pytest.raises(LoginError) as caught:
        bench.put()
    assert caught.value.transient
    assert "data_access" in caught.value.hint or "hansa login" in caught.value.hint
    bench.put(data_access=True)
    assert arrived(bench)


def test_a_session_that_is_over(bench, service):
    service.faults.need_session(
        bench.site, session_required_single_domain=["anl.example"]
    )
    with pytest.raises(LoginError):
        bench.put()
    service.faults.need_session(bench.site)
    bench.put()
    assert arrived(bench)


def test_a_consent_that_goes_missing_keeps_the_ticket(bench, service):
    body = {
        "code": "ConsentRequired",
        "message": "Missing required data_access consent",
        "required_scopes": [
            "urn:globus:auth:scope:transfer.api.globus.org:all"
            f"[*https://auth.globus.org/scopes/{bench.site}/data_access]"
        ],
    }
    service.faults.reply("POST /v0.10/transfer", 403, body=body)
    with pytest.raises(LoginError):
        bench.put()
    bench.put()
    assert len({one["ticket"] for one in bench.log.lines()}) == 1


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_answer_never_submits_twice(bench, service, after):
    service.faults.reply("POST /v0.10/transfer", 502, times=2, after=after)
    with pytest.raises(TransferError) as caught:
        bench.put()
    assert caught.value.transient
    bench.put()
    assert arrived(bench)
    assert len(bench.tasks) == 1
    assert bench.sent() == ["a.safetensors", "manifest.json"]


def test_a_rename_whose_answer_is_lost_was_done(bench, service):
    service.faults.reply("POST /v0.10/operation/.*/rename", 502, times=1, after=True)
    bench.put()
    assert arrived(bench)
    assert bench.log.lines()[-1]["outcome"] == "done"


def test_a_service_that_is_away_is_transient(bench, service):
    service.kill_service()
    try:
        with pytest.raises(TransferError, match="can't be reached") as caught:
            bench.put()
    finally:
        service.start_service()
    assert caught.value.transient
    assert bench.log.lines() == []


def test_no_answer_from_where_tokens_are_made_is_transient(bench, monkeypatch):
    def nobody(collections):
        raise GatewayError("Globus can't be reached while getting a token.")

    monkeypatch.setattr(globus_service, "transfer_client", nobody)
    with pytest.raises(TransferError, match="can't be reached") as caught:
        bench.put()
    assert caught.value.transient


def test_a_service_that_dies_in_mid_transfer_is_found_again(bench, service):
    service.faults.slow(bench.server, 400_000)

    async def work():
        mover = bench.mover()
        putting = asyncio.create_task(mover.put(bench.source, PLACE, FILES))
        await bench.until(lambda task: task["bytes_transferred"])
        service.kill_service()
        with pytest.raises(TransferError) as caught:
            await putting
        assert caught.value.transient
        service.start_service()
        moved = await mover.put(bench.source, PLACE, FILES)
        await mover.close()
        return moved

    asyncio.run(work())
    assert arrived(bench)
    assert len(bench.tasks) == 1


def test_a_mailbox_that_is_not_there(bench):
    with pytest.raises(TransferError):
        bench.put(path="/eagle/nowhere/hansa")
    assert bench.tasks == []


def test_a_run_that_is_over_leaves_nothing_under_way(bench, service):
    service.faults.slow(bench.server, 100_000)

    async def work():
        mover = bench.mover()
        putting = asyncio.create_task(mover.put(bench.source, PLACE, FILES))
        await bench.until(lambda task: task["bytes_transferred"])
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        bench.log.closed = True
        await mover.close()

    asyncio.run(work())
    (task,) = bench.tasks
    assert task["_cancel"]
    assert bench.log.lines()[-1]["outcome"] == "cancelled"
    assert bench.log.open() == ()


# --- what is there already --------------------------------------------------------


def test_a_damaged_target_is_mended_by_what_differs_only(bench):
    (bench.source / "b.safetensors").write_bytes(b"same")
    files = {**FILES, "b.safetensors": record(b"same")}
    bench.put(files)
    (bench.mailbox / PLACE / "a.safetensors").write_bytes(b"X" + DATA[1:])
    moved = bench.put(files)
    assert arrived(bench)
    assert moved.bytes == len(DATA)
    assert bench.sent()[-1] == "a.safetensors"
    assert bench.put(files).bytes == 0


def test_a_folder_without_a_manifest_is_set_aside(bench):
    (bench.mailbox / PLACE).mkdir(parents=True)
    (bench.mailbox / PLACE / "a.safetensors").write_bytes(b"half")
    bench.put()
    assert arrived(bench)


def test_another_manifest_of_the_same_length_is_noticed(bench):
    there = bench.mailbox / PLACE
    there.mkdir(parents=True)
    (there / "manifest.json").write_text("[]")
    with pytest.raises(TransferError, match="with another manifest") as caught:
        bench.put()
    assert not caught.value.transient
    assert (there / "manifest.json").read_text() == "[]"
    assert not list(bench.here.glob("**/.*.arriving"))


def test_what_a_store_sweeps_out_of_its_folders_is_not_what_is_arriving(bench, service):
    """A run that is resumed opens its store while the service is still writing."""
    update = bench.mailbox / "run/updates/a"
    bench.fill(update)
    target = bench.here / "runs/run/updates/a"
    service.faults.slow(bench.site, 600_000)

    async def work():
        mover = bench.mover()
        getting = asyncio.create_task(mover.get("run/updates/a", target, FILES))
        await bench.until(lambda task: True)
        target.parent.mkdir(exist_ok=True)
        for entry in target.parent.glob(".*"):
            shutil.rmtree(entry)
        moved = await getting
        await mover.close()
        return moved

    assert asyncio.run(work()).bytes == len(DATA) + 2
    assert (target / "a.safetensors").read_bytes() == DATA
    left = {one.name for one in (bench.here / "runs/run").iterdir()}
    assert left == {"updates", "versions"}


def test_a_larger_file_than_promised_is_not_even_fetched(bench):
    bench.fill(bench.mailbox / "run/updates/a", DATA + b"more")
    with pytest.raises(Damaged, match="300004 bytes of 300000"):
        bench.do("get", "run/updates/a", bench.here / "runs/run/updates/a", FILES)
    assert bench.tasks == []


# --- crashes ----------------------------------------------------------------------

CRASHES = {
    "before the note": ("log", "submitted", "before"),
    "between the note and the submission": ("service", "submit", "before"),
    "between the submission and its answer": ("service", "submit", "after"),
    "before the end is seen": ("service", "look", "before"),
    "between the end and the rename": ("service", "rename", "before"),
    "between the rename and its answer": ("service", "rename", "after"),
    "between the rename and the end's note": ("log", "ended", "before"),
    "between the end's note and the caller's word": ("log", "ended", "after"),
}


@pytest.mark.parametrize("when", CRASHES)
def test_a_crash_at_any_point_sends_nothing_twice(bench, when):
    what, name, side = CRASHES[when]

    async def crash():
        mover, reached = bench.mover(), asyncio.Event()
        owner = bench.log if what == "log" else mover._service
        real = getattr(owner, name)

        async def dies(*arguments):
            if side == "after":
                await real(*arguments)
            reached.set()
            await asyncio.Event().wait()

        setattr(owner, name, dies)
        putting = asyncio.create_task(mover.put(bench.source, PLACE, FILES))
        await reached.wait()
        delattr(owner, name)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        await mover.close()

    asyncio.run(crash())
    if not when.startswith("between the rename") and "end's note" not in when:
        assert not (bench.mailbox / PLACE).exists()
    bench.put()
    assert arrived(bench)
    sent = [name for name in bench.sent() if name != "manifest.json"]
    assert sent == ["a.safetensors"]
    of_files = [task["_submission"] for task in bench.tasks if len(task["_items"]) > 1]
    tickets = {one["ticket"] for one in bench.log.lines()}
    assert set(of_files) == tickets
    # Only what was noted as ended is looked at once more, by checksum.
    assert len(of_files) == (2 if when.startswith("between the end's note") else 1)
    assert bench.log.open() == ()
    assert [one.name for one in (bench.mailbox / PLACE).parent.iterdir()] == ["3"]


async def carry(given) -> None:
    """Be the process that is going to be killed."""
    place = Place(
        mailbox=Path("/x"), facility="polaris", log=FileLog(Path(given["log"]))
    )
    mover = GlobusMover(GlobusOptions.model_validate(given["options"]), place)
    first, second = given["where"]
    files = {name: FileRecord(**one) for name, one in given["files"].items()}
    if given["verb"] == "put":
        await mover.put(Path(first), second, files)
    else:
        await mover.get(first, Path(second), files)


@pytest.mark.parametrize("verb", ["put", "get"])
def test_killed_in_mid_transfer_and_resumed_under_one_submission_id(
    bench, service, verb
):
    if verb == "put":
        where, source = (str(bench.source), PLACE), bench.server
        arrival = bench.mailbox / PLACE
    else:
        bench.fill(bench.mailbox / "run/updates/a")
        arrival = bench.here / "runs/run/updates/a"
        where, source = ("run/updates/a", str(arrival)), bench.site
    service.faults.slow(source, 200_000)
    given = {
        "options": bench.options(),
        "log": str(bench.log.path),
        "files": {name: asdict(one) for name, one in FILES.items()},
        "verb": verb,
        "where": where,
    }
    tests = Path(__file__).parents[2]
    path = f"{tests}{os.pathsep}{tests / 'helpers'}"
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(given)],
        env={**os.environ, **service.env, "PYTHONPATH": path},
    )
    try:
        asyncio.run(bench.until(lambda task: task["bytes_transferred"]))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not arrival.exists()
    assert len(bench.log.open()) == 1
    service.faults.slow(source, 0)
    first, second = where
    arguments = (Path(first), second) if verb == "put" else (first, Path(second))
    moved = bench.do(verb, *arguments, FILES)
    assert moved.bytes == len(DATA) + 2
    assert (arrival / "a.safetensors").read_bytes() == DATA
    (task,) = bench.tasks
    codes = [
        one["code"] for one in service.submissions() if one["task"] == task["task_id"]
    ]
    assert codes == ["Accepted", "Duplicate"]
    assert bench.sent() == ["a.safetensors", "manifest.json"]
    assert bench.log.open() == ()


# --- before a run -----------------------------------------------------------------


def check(bench, **changes):
    return bench.do("check", **changes)


def problems(remarks):
    return [(one.detail, one.hint) for one in remarks if one.state == PROBLEM]


def test_check_says_that_all_is_well_and_changes_nothing(bench, service):
    before = len(service.requests("POST /v0.10/"))
    remarks = check(bench)
    assert problems(remarks) == []
    said = [(one.check, one.state) for one in remarks]
    assert said[0] == ("login", OK)
    assert said[1:] == [("line", OK)] * 4
    assert len(service.requests("POST /v0.10/")) == before


def test_check_sees_a_path_that_is_not_root(bench):
    (bench.here / "other").mkdir()
    (bench.here / "other/thing").write_text("x")
    here = {**bench.options()["here"], "path": "/other"}
    ((detail, hint),) = problems(check(bench, here=here))
    assert "are not the same" in detail
    assert "mover.here.path" in hint
    here["path"] = "/nowhere"
    ((detail, _),) = problems(check(bench, here=here))
    assert "shows no /nowhere" in detail


def test_check_of_an_empty_root_knows_nothing(bench):
    (bench.here / "empty").mkdir()
    here = {**bench.options()["here"], "root": str(bench.here / "empty")}
    here["path"] = "/empty"
    assert check(bench, here=here)[-1].state == UNKNOWN


def test_check_sees_a_missing_mailbox(bench):
    ((detail, hint),) = problems(check(bench, path="/nowhere"))
    assert "polaris:/nowhere" in detail
    assert "mover.path" in hint


def test_check_sees_a_collection_that_nobody_knows(bench):
    ((detail, _),) = problems(check(bench, collection=ID))
    assert "no such collection" in detail


def test_check_sees_a_collection_that_is_away(bench, service):
    service.faults.offline(bench.site)
    ((detail, hint),) = problems(check(bench))
    assert "eagle" in detail
    assert "app.globus.org" in hint


@pytest.mark.parametrize(
    ("data", "state", "said"),
    [
        ({}, OK, "collection eagle (polaris) is there"),
        ({"high_assurance": True}, OK, "limited time"),
        ({"force_encryption": True}, OK, "always encrypted"),
        ({"gcp_connected": True, "gcp_paused": False}, OK, "is there"),
        ({"gcp_connected": False}, PROBLEM, "is not connected"),
        ({"gcp_connected": True, "gcp_paused": True}, PROBLEM, "is paused"),
        ({"non_functional": True}, PROBLEM, "out of order"),
        ({"disable_verify": True}, PROBLEM, "checksums"),
    ],
)
def test_what_is_known_of_a_collection_is_judged(data, state, said):
    spot = globus_service.Spot(collection=ID, name="polaris", key="mover.path")
    (remark,) = globus_check.judged(spot, {"display_name": "eagle", **data})
    assert (remark.state, said in remark.detail) == (state, True)
    assert bool(remark.hint) is (state == PROBLEM)


def test_check_without_a_login_names_the_command(bench, monkeypatch, tmp_path):
    monkeypatch.delenv("HANSA_GLOBUS_CLIENT_ID")
    monkeypatch.setenv("HANSA_GLOBUS_DIR", str(tmp_path / "none"))
    remarks = check(bench)
    assert [(one.check, one.state) for one in remarks] == [("login", PROBLEM)]
    assert "hansa login" in remarks[0].hint


if __name__ == "__main__":
    asyncio.run(carry(json.loads(sys.argv[1])))
