"""The mover over a bucket, against a real S3 protocol and a real site agent.

What every mover must do is in the contract tests; here are pieces, faults and secrets.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
from collections import Counter

import psutil
import pytest
from pydantic import ValidationError
from runs import until
from s3_service import KEYS, Service, asking

from hansa.core.errors import HansaError, PluginError, PolicyError, TransferError
from hansa.core.files import FileRecord
from hansa.mover.base import NoLog, Place
from hansa.mover.s3 import S3Mover
from hansa.mover.s3_directory import cut
from hansa.mover.s3_options import S3Options
from hansa.mover.s3_shelf import Shelf

MIB = 1 << 20
BIG = os.urandom(5 * MIB + 4321)
"""Six pieces of 1 MiB, the last one short."""


@pytest.fixture(scope="module")
def running():
    service = Service()
    service.start()
    yield service
    service.stop()


@pytest.fixture
def service(running, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    running.empty()
    return running


def record(data):
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def make(folder, **files):
    """Write a directory whose manifest has the form of a version's."""
    folder.mkdir(parents=True)
    records = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        records[name] = record(data)
    listed = {n: {"bytes": r.bytes, "sha256": r.sha256} for n, r in records.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": listed}))
    return records


def content(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


class Interrupted(NoLog):
    """The log of a run that is going to be resumed."""

    closed = False


class Town:
    """A facility with a mailbox and a site agent, and a mover to it.

    `change` is what it makes of each of its replies about an exchange.
    """

    def __init__(self, root, service, name="polaris", hosts=None, log=None, **options):
        self.root = root / name
        self.mail = self.root / "mail"
        self.seen = []
        hosts = [service.host] if hosts is None else hosts
        self.ask = asking(self.root, self.mail, *hosts)
        self.change = lambda reply: reply
        place = Place(
            mailbox=self.mail,
            facility=name,
            log=log or NoLog(),
            ask=self._changed,
            watch=self.seen.append,
        )
        given = {**service.options, "part_bytes": MIB, **options}
        self.mover = S3Mover(S3Options.model_validate(given), place)

    async def _changed(self, request):
        reply = await self.ask(request)
        return self.change(reply) if "state" in reply else reply

    def there(self, place):
        return self.mail / "smol" / place

    async def put(self, source, place, files):
        return await self.mover.put(source, f"smol/{place}", files)

    async def get(self, place, target, files):
        return await self.mover.get(f"smol/{place}", target, files)

    def notes(self):
        return sorted((self.root / "own/smol/exchange").iterdir())

    def workers(self):
        """Return this facility's exchange processes."""
        mine = str(self.root)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(one.startswith(mine) for one in process.cmdline()):
                    found.append(process)
        return found


def run(work, *towns):
    """Do something with movers, and close them."""

    async def whole():
        try:
            return await work()
        finally:
            for town in towns:
                await town.mover.close()
                for worker in town.workers():  # it may still wait for URLs
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.kill()

    return asyncio.run(whole())


@pytest.fixture
def town(tmp_path, service):
    return Town(tmp_path, service)


@pytest.fixture
def version(tmp_path):
    """A version on the server, and its records."""
    source = tmp_path / "server/versions/3"
    return source, make(source, **{"model.safetensors": BIG, "empty.json": b""})


def moved_back(town, tmp_path):
    """Make an update at the facility; return what fetches it."""
    there = town.there("updates/train-0001-polaris-1")
    files = make(there, **{"update.safetensors": BIG})
    target = tmp_path / "server/updates/train-0001-polaris-1"

    def get():
        return town.get("updates/train-0001-polaris-1", target, files)

    return get, there, target


def test_pieces_go_and_are_joined(town, version, service):
    source, files = version
    moved = run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)
    assert moved.bytes == sum(path.stat().st_size for path in source.iterdir())
    assert len(service.fetched()) == 7  # six of the model, one of the manifest
    assert town.seen[-1].total == moved.bytes


def test_pieces_come_back_and_are_joined(town, tmp_path, service):
    get, there, target = moved_back(town, tmp_path)
    moved = run(get, town)
    assert content(target) == content(there)
    assert moved.bytes == sum(len(data) for data in content(there).values())
    assert len(service.delivered()) == 7
    assert town.seen[-1].bytes <= town.seen[-1].total == moved.bytes


def test_nothing_stays_in_the_bucket(town, version, tmp_path, service):
    source, files = version
    get, _, _ = moved_back(town, tmp_path)

    async def work():
        await town.put(source, "versions/3", files)
        await get()
        return service.objects()

    during = run(work, town)
    assert during
    assert all(key.startswith("hansa/smol/out/") for key in during)
    assert not service.objects()


def test_other_runs_are_left_alone(town, version, service):
    service.change("hansa/other/out/x", b"theirs")
    source, files = version
    run(lambda: town.put(source, "versions/3", files), town)
    assert service.objects() == {"hansa/other/out/x"}


def test_facilities_share_what_is_uploaded(tmp_path, version, service):
    towns = [Town(tmp_path, service, name) for name in ("polaris", "aurora")]
    source, files = version

    async def work():
        await asyncio.gather(*(t.put(source, "versions/3", files) for t in towns))

    run(work, *towns)
    for one in towns:
        assert content(one.there("versions/3")) == content(source)
    uploads = service.uploads()
    assert len(uploads) == 7
    assert set(uploads.values()) == {1}


def test_only_changed_files_travel(town, tmp_path, service):
    first, second = tmp_path / "server/3", tmp_path / "server/4"
    old = make(first, **{"tokenizer": BIG, "model": b"three"})
    new = make(second, **{"tokenizer": BIG, "model": b"four"})

    async def work():
        await town.put(first, "versions/3", old)
        before = len(service.asked)
        moved = await town.put(second, "versions/4", new)
        return moved, service.asked[before:]

    moved, asked = run(work, town)
    assert content(town.there("versions/4")) == content(second)
    assert moved.bytes == len(b"four") + (second / "manifest.json").stat().st_size
    tokenizer = new["tokenizer"].sha256
    assert not any(tokenizer in one.key for one in asked if one.method != "DELETE")


def test_old_versions_are_swept(town, tmp_path, service):
    async def work():
        for number in range(4):
            folder = tmp_path / f"server/{number}"
            files = make(folder, model=b"%d" % number)
            await town.put(folder, f"versions/{number}", files)
        return [service.content(key) for key in service.objects()]

    left = run(work, town)
    assert {data for data in left if len(data) == 1} == {b"2", b"3"}


# --- faults ---------------------------------------------------------------------------


def once(status, where, body=b""):
    """Answer the first signed request to each object with a status."""
    seen = set()

    def trick(asked):
        if not asked.signed or asked.method != where or asked.key in seen:
            return None
        seen.add(asked.key)
        return status, body

    return trick


@pytest.mark.parametrize("status", ["403 Forbidden", "500 Broken", "503 Slow Down"])
def test_a_fetch_outlives_one_bad_answer(town, version, service, status):
    service.trick = once(status, "GET", b"<Error><Code>Wrong</Code></Error>")
    source, files = version
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)


def test_an_object_that_is_lost_is_uploaded_again(town, version, service):
    source, files = version
    lost = []

    def trick(asked):
        if asked.signed and asked.key.endswith("00002") and not lost:
            lost.append(asked.key)
            return "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
        return None

    service.trick = trick
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)
    assert service.uploads()[lost[0]] == 2


@pytest.mark.parametrize("status", ["403 Forbidden", "500 Broken", "503 Slow Down"])
def test_a_delivery_outlives_one_bad_answer(town, tmp_path, service, status):
    get, there, target = moved_back(town, tmp_path)
    service.trick = once(status, "PUT")
    run(get, town)
    assert content(target) == content(there)


@pytest.mark.parametrize("status", ["403 Forbidden", "201 Created", "302 Found"])
def test_what_is_refused_for_good_is_told(town, tmp_path, service, status):
    get, there, target = moved_back(town, tmp_path)
    service.trick = lambda asked: (status, b"") if asked.signed else None
    with pytest.raises(TransferError) as caught:
        run(get, town)
    assert f"answers {status[:3]}" in caught.value.message
    assert not caught.value.transient
    assert "X-Amz" not in f"{caught.value.message} {caught.value.hint}"
    assert not target.exists()
    assert there.is_dir()


def test_urls_that_end_before_their_turn_are_signed_anew(tmp_path, version, service):
    """The first answers take so long that the other pieces' URLs end meanwhile."""
    town = Town(tmp_path, service, expires=6)
    source, files = version
    slow = threading.Event()

    def trick(asked):
        if asked.signed and len(service.fetched()) <= 4:
            slow.wait(4.2)

    service.trick = trick
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)
    assert service.expired == 0
    assert len({one.made for one in service.fetched()}) > 1


def test_a_broken_body_goes_on_where_it_broke(town, version, service):
    source, files = version
    cut = set()

    def spoil(asked, body):
        if len(body) < MIB or asked.key in cut:
            return body
        cut.add(asked.key)
        return body[: MIB // 2]

    service.spoil = spoil
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)
    assert len(cut) == 5
    ranges = Counter(one.range for one in service.fetched() if one.range)
    assert ranges == {f"bytes={MIB // 2}-": 5}


def test_a_damaged_object_is_made_anew(town, version, service):
    source, files = version
    spoilt = []

    def spoil(asked, body):
        if len(body) == MIB and not spoilt:
            spoilt.append(asked.key)
            service.change(asked.key, bytes(MIB))
            return bytes(MIB)
        return body

    service.spoil = spoil
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)
    assert service.uploads()[spoilt[0]] == 2


def test_lasting_damage_is_told(town, version, service):
    source, files = version
    service.spoil = lambda asked, body: bytes(len(body))
    with pytest.raises(TransferError, match="not what its manifest promises"):
        run(lambda: town.put(source, "versions/3", files), town)
    assert not town.there("versions/3").exists()


def test_an_update_damaged_on_its_way_is_delivered_anew(town, tmp_path, service):
    get, there, target = moved_back(town, tmp_path)
    spoilt = []

    def trick(asked):
        read = asked.method == "GET" and not asked.signed and asked.key.count("/") > 4
        if read and not spoilt and len(service.content(asked.key)) == MIB:
            spoilt.append(asked.key)
            service.change(asked.key, bytes(MIB))

    service.trick = trick
    run(get, town)
    assert content(target) == content(there)
    assert len(spoilt) == 1


def test_a_killed_process_is_taken_up_by_range(town, version, service):
    source, files = version
    killed = []

    def progress():
        (notes,) = town.notes()
        return json.loads((notes / "status.json").read_text())["have"]

    def trick(asked):
        last = asked.signed and asked.key.endswith("00005")
        if last and not killed:
            killed.append(until(lambda: len(progress()) >= 6 and progress()))
            for worker in town.workers():
                worker.send_signal(signal.SIGKILL)

    service.trick = trick
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)
    gets = Counter(one.key for one in service.fetched())
    again = [key for key, times in gets.items() if times > 1]
    assert len(killed) == 1
    assert [key[-5:] for key in again] == ["00005"]


def test_a_delivery_goes_on_after_the_server_came_back(town, tmp_path, service):
    get, there, target = moved_back(town, tmp_path)
    stuck = []

    def trick(asked):
        if asked.method == "PUT" and asked.key.endswith("00003") and not stuck:
            return "503 Slow Down", b""
        return None

    service.trick = trick

    async def work():
        first = asyncio.create_task(get())
        await asyncio.to_thread(until, lambda: len(service.objects()) >= 5)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        stuck.append(True)
        await get()

    run(work, town)
    assert content(target) == content(there)
    puts = Counter(one.key for one in service.delivered())
    assert {times for key, times in puts.items() if not key.endswith("00003")} == {1}


def interrupt(service, town, move):
    """Move something slowly, and stop when a part of it lies in the bucket."""
    fast = threading.Event()

    def trick(asked):
        if asked.signed:
            fast.wait(0.3)

    async def work():
        moving = asyncio.create_task(move())
        await asyncio.to_thread(until, lambda: len(service.objects()) >= 3)
        moving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await moving

    service.trick = trick
    run(work, town)
    fast.set()
    assert service.objects()


def test_a_resumed_run_does_not_upload_again(tmp_path, version, service):
    source, files = version
    town = Town(tmp_path, service, log=Interrupted())
    interrupt(service, town, lambda: town.put(source, "versions/3", files))
    again = Town(tmp_path, service)
    run(lambda: again.put(source, "versions/3", files), again)
    assert content(town.there("versions/3")) == content(source)
    assert set(service.uploads().values()) == {1}
    assert not service.objects()


def test_a_resumed_run_does_not_have_it_delivered_again(tmp_path, service):
    town = Town(tmp_path, service, log=Interrupted())
    get, there, target = moved_back(town, tmp_path)
    interrupt(service, town, get)
    lay = service.objects()
    again, files = Town(tmp_path, service), {"update.safetensors": record(BIG)}
    run(lambda: again.get(f"updates/{there.name}", target, files), again)
    assert content(target) == content(there)
    puts = Counter(one.key for one in service.delivered())
    assert {puts[key] for key in lay} == {1}
    assert not service.objects()


@pytest.mark.parametrize("how", ["removed", "replaced by a link", "shortened"])
def test_a_file_that_changes_while_it_is_delivered_is_told_at_once(
    town, tmp_path, service, how
):
    get, there, target = moved_back(town, tmp_path)
    path, done = there / "update.safetensors", []

    def trick(asked):
        if not asked.signed or done:
            return
        done.append(asked.key)
        if how == "shortened":
            os.truncate(path, MIB)
            return
        path.unlink()
        if how != "removed":
            path.symlink_to("/dev/zero")

    service.trick = trick
    with pytest.raises(TransferError, match=r"update\.safetensors") as caught:
        run(get, town)
    assert "can't be reached" not in caught.value.message  # it is not the line's fault
    assert not target.exists()


# --- what a facility says -------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"state": None},
        {"state": ["moving"]},
        {"wants": None},
        {"wants": ["x"]},
        {"wants": [1.5]},
        {"moved": -5},
        {"bytes": 1 << 70},
        {"ready": "x"},
        {"faults": None},
        {"state": "failed", "error": "x"},
        {"damaged": [["x"]]},
    ],
)
@pytest.mark.parametrize("way", ["put", "get"])
def test_a_reply_without_sense_is_refused(town, version, tmp_path, service, way, field):
    source, files = version
    get, _, _ = moved_back(town, tmp_path)
    town.change = lambda reply: {**reply, **field}
    with pytest.raises(TransferError, match=r"polaris answers .* makes no sense"):
        run(get if way == "get" else lambda: town.put(source, "v/3", files), town)


def test_pieces_that_do_not_exist_are_not_signed(town, version, service):
    source, files = version
    town.change = lambda reply: {**reply, "wants": [-1, 10**9, *reply["wants"]]}
    run(lambda: town.put(source, "versions/3", files), town)
    assert content(town.there("versions/3")) == content(source)


def test_a_failure_without_words_is_told_in_ours(town, version, service):
    source, files = version
    town.change = lambda reply: {**reply, "state": "failed", "error": None}
    with pytest.raises(HansaError, match="polaris says no more"):
        run(lambda: town.put(source, "versions/3", files), town)


def test_a_facility_that_does_not_go_on_is_not_waited_for_for_ever(
    town, version, service, monkeypatch
):
    monkeypatch.setattr("hansa.mover.s3_errand._STALL_S", 0.5)
    source, files = version
    town.change = lambda reply: {"state": "moving", "wants": [10**9]}
    with pytest.raises(TransferError, match=r"has not gone on for 0\.5 s"):
        run(lambda: town.put(source, "versions/3", files), town)


# --- the shelf ------------------------------------------------------------------------


class Bucket:
    """A bucket in memory whose service answers when it is let."""

    def __init__(self):
        self.answers = threading.Event()
        self.kept, self.uploads, self.deleted = {}, [], []

    def sizes(self, folder):
        del folder
        assert self.answers.wait(10)
        return dict(self.kept)

    def upload(self, key, path, offset, length, go_on):
        del path, offset
        assert go_on()
        self.uploads.append(key)
        self.kept[key] = length

    def delete(self, keys):
        self.deleted += keys


@pytest.fixture
def shelf():
    return Shelf(Bucket(), "hansa")


PIECE, LAST = cut({"a": FileRecord(bytes=2 * MIB, sha256="0" * 64)}, MIB)


def test_a_slow_service_does_not_stop_the_server(shelf, tmp_path):
    async def work():
        making = asyncio.create_task(shelf.ensure("r", PIECE, tmp_path))
        await asyncio.sleep(0.05)
        with shelf.using("r", "versions/1", [PIECE]):  # on the loop itself
            shelf.bucket.answers.set()
            await making

    asyncio.run(work())
    assert len(shelf.bucket.uploads) == 1


def test_those_that_want_the_same_piece_leave_a_thread_to_others(shelf, tmp_path):
    shelf.bucket.answers.set()

    async def work():
        same = [shelf.ensure("r", PIECE, tmp_path) for _ in range(8)]
        await asyncio.gather(*same, shelf.ensure("r", LAST, tmp_path))

    asyncio.run(work())
    assert len(shelf.bucket.uploads) == 2


def test_a_damaged_object_is_written_over_and_not_taken_from_others(shelf, tmp_path):
    shelf.bucket.answers.set()

    async def work():
        await shelf.ensure("r", PIECE, tmp_path)
        shelf.forget("r", [shelf.out("r", PIECE)])
        await shelf.ensure("r", PIECE, tmp_path)

    asyncio.run(work())
    assert len(shelf.bucket.uploads) == 2
    assert shelf.bucket.deleted == []


# --- policy and secrets ---------------------------------------------------------------


@pytest.mark.parametrize("hosts", [[], ["bucket.example.org"]])
def test_a_host_outside_the_list_is_refused(tmp_path, version, service, hosts):
    town = Town(tmp_path, service, hosts=hosts)
    source, files = version
    with pytest.raises(PolicyError, match=r"exchange\.hosts") as caught:
        run(lambda: town.put(source, "versions/3", files), town)
    assert service.host in caught.value.message
    assert not service.objects()
    assert service.fetched() == []


def test_nothing_secret_is_left(town, version, service, capfd):
    source, files = version
    run(lambda: town.put(source, "versions/3", files), town)
    for notes in town.notes():
        assert notes.stat().st_mode & 0o077 == 0
        for path in notes.iterdir():
            assert "X-Amz" not in path.read_text()
    assert "X-Amz" not in "".join(capfd.readouterr())


def test_the_process_gets_no_credentials_and_no_url_in_its_words(
    town, version, service
):
    source, files = version
    found = []

    def trick(asked):
        if asked.signed and not found:
            found.extend(
                (worker.cmdline(), worker.environ()) for worker in town.workers()
            )

    service.trick = trick
    run(lambda: town.put(source, "versions/3", files), town)
    words, variables = found[0]
    assert "X-Amz" not in " ".join(words)
    assert not [name for name in variables if name.startswith("AWS_")]
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in variables.values()


# --- check, options -------------------------------------------------------------------


def states(town):
    remarks = run(town.mover.check, town)
    return {remark.check: (remark.state, remark.detail) for remark in remarks}


def test_check_looks_at_the_bucket_and_at_the_line(town, service):
    found = states(town)
    assert found["bucket"] == ("ok", "hansa-bucket can be listed")
    assert found["line"] == ("ok", f"polaris reaches http://{service.host}")
    assert not service.objects()


def test_check_tells_of_a_missing_bucket_and_a_closed_line(tmp_path, service):
    town = Town(tmp_path, service, hosts=[], bucket="another-bucket")
    found = states(town)
    state, words = found["bucket"]
    assert state == "problem"
    assert "'another-bucket': it answers 404 NoSuchBucket" in words
    assert found["line"][0] == "problem"
    assert "exchange.hosts" in found["line"][1]


def test_a_refused_bucket_is_told_without_the_service_s_text(town, version, service):
    source, files = version
    text = b"<Error><Code>InvalidAccessKeyId</Code><Key>the-server</Key></Error>"
    service.trick = lambda asked: None if asked.signed else ("403 Forbidden", text)
    with pytest.raises(TransferError) as caught:
        run(lambda: town.put(source, "versions/3", files), town)
    assert "it answers 403 InvalidAccessKeyId" in caught.value.message
    assert not caught.value.transient
    assert "the-server" not in caught.value.message


def test_without_obstore_the_extra_is_named(monkeypatch, tmp_path, service):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "hansa.mover.s3_bucket", raising=False)
    with pytest.raises(PluginError) as caught:
        Town(tmp_path, service, prefix="elsewhere")
    assert caught.value.hint == "pip install 'hansa[s3]'"


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix": "../x"},
        {"prefix": ""},
        {"bucket": "a/b"},
        {"endpoint": "ftp://x"},
        {"endpoint": "https://user:secret@x"},
        {"expires": 0},
        {"part_bytes": 1},
        {"access_key_id": "x"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        S3Options.model_validate({"bucket": "hansa-bucket", **wrong})
