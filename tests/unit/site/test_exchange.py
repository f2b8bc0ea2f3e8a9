"""The facility's side of an exchange: what is allowed, and the process that does it."""

import hashlib
import json
import socket
import threading

import pytest
from paper_facility import RUN

from hansa.core.errors import SpecError, StorageFull, TransferError, UsageError
from hansa.core.files import FileRecord
from hansa.core.retry import RetryPolicy
from hansa.mover.s3_directory import cut
from hansa.site import rpc
from hansa.site.exchange_directory import Arriving
from hansa.site.exchange_http import (
    LineFault,
    NotThere,
    Refusal,
    Service,
    Unusable,
)
from hansa.site.exchange_notes import NOTHING, Notes, Status, Task, Tries
from hansa.site.exchange_worker import Board, Worker
from hansa.spec import load_site

MIB = 1 << 20
ORIGIN = "https://bucket.example.org"
EMPTY = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
TWO = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}


def fetch(**fields):
    request = {
        "schema": 1,
        "op": "fetch",
        "run": RUN,
        "place": "versions/3",
        "ticket": "aa",
        "origin": ORIGIN,
        "part_bytes": MIB,
        "files": {"manifest.json": TWO},
    }
    return {**request, **fields}


@pytest.fixture
def open_facility(facility):
    facility.use(exchange={"hosts": ["bucket.example.org", "127.0.0.1:1"]})
    return facility


# --- what is allowed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://other.example.org",
        "https://bucket.example.org:8443",
        "http://bucket.example.org",
        "https://127.0.0.1",
        "http://127.0.0.1:2",
    ],
)
def test_only_listed_hosts_over_https(open_facility, origin):
    for request in (
        fetch(origin=origin),
        {"schema": 1, "op": "reach", "origin": origin},
    ):
        error = open_facility.error(request)
        assert error["code"] == "FACILITY_REFUSES"
        assert "exchange.hosts" in error["message"]
        assert "bucket.example.org, 127.0.0.1:1" in error["hint"]


def test_nobody_is_listed_by_default(facility):
    error = facility.error(fetch(dry_run=True))
    assert "Allowed: no host" in error["hint"]


def test_a_listed_host_is_allowed(open_facility):
    assert open_facility.data(fetch(dry_run=True)) == {"manifest": None}


def test_a_host_that_does_not_answer_is_told(open_facility):
    asked = {"schema": 1, "op": "reach", "origin": "http://127.0.0.1:1"}
    error = open_facility.error(asked)
    assert error["code"] == "FACILITY"
    assert "127.0.0.1:1 can't be reached: Connection refused" in error["message"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"origin": "https://user@bucket.example.org"}, "origin"),
        ({"origin": "file:///etc"}, "origin"),
        ({"origin": ORIGIN + "/x"}, "origin"),
        ({"urls": {"0": "https://elsewhere/SECRET"}}, "urls"),
        ({"urls": {"0": "/x SECRET"}}, "urls"),
        ({"urls": {"0": "/x\r\nHost: SECRET"}}, "urls"),
        ({"urls": {"-1": "/SECRET"}}, "urls"),
        ({"urls": {str(n): "/SECRET" for n in range(65)}}, "urls"),
        ({"kept": [-1]}, "kept"),
        ({"part_bytes": 1}, "part_bytes"),
        ({"files": {"a": {"bytes": -1, "sha256": "0" * 64}}}, "files"),
        ({"files": {"a": {"bytes": 1, "sha256": "x"}}}, "files"),
        ({"valid": 0}, "valid"),
        ({"ticket": "../x"}, "ticket"),
        ({"shell": "true"}, "shell"),
    ],
)
def test_what_can_not_be_understood_is_refused_and_not_repeated(fields, word):
    with pytest.raises(UsageError) as caught:
        rpc.parse_request(fetch(**fields))
    assert word in caught.value.message
    assert "SECRET" not in caught.value.message


def test_urls_are_not_shown():
    ask = rpc.parse_request(fetch(urls={"0": "/x?SECRET"}))
    assert "SECRET" not in repr(ask)


@pytest.mark.parametrize(
    "place", ["../x", "/x", "versions/../../x", ".x/3", "versions/.3"]
)
def test_places_are_in_the_mailbox(open_facility, place):
    error = open_facility.error(fetch(place=place))
    assert "no path inside a mailbox" in error["message"]


def test_links_out_of_the_mailbox_are_refused(open_facility, tmp_path):
    (tmp_path / "outside").mkdir()
    open_facility.mail.mkdir(parents=True)
    (open_facility.mail / "versions").symlink_to(tmp_path / "outside")
    error = open_facility.error(fetch())
    assert "leads out of the mailbox" in error["message"]


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", ""])
def test_names_are_plain(open_facility, name):
    files = {"manifest.json": TWO, name: EMPTY}
    error = open_facility.error(fetch(files=files))
    assert "no name for one" in error["message"]


def test_a_manifest_has_to_be_promised(open_facility):
    assert "no manifest" in open_facility.error(fetch(files={}))["message"]


def test_a_delivery_shows_its_manifest_first(open_facility):
    asked = fetch(op="deliver", place="updates/u", files={}, dry_run=True)
    assert "has no manifest" in open_facility.error(asked)["message"]
    folder = open_facility.mail / "updates/u"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert open_facility.data(asked) == {"manifest": TWO}


@pytest.mark.parametrize(
    ("hosts", "word"),
    [
        ("[https://x.org]", "is no host"),
        ("['*']", "is no host"),
        ("[X.org/bucket]", "is no host"),
        ("[-x.org]", "is no host"),
        ("[3]", "hosts"),
    ],
)
def test_hosts_are_hosts(tmp_path, hosts, word):
    path = tmp_path / "site.yaml"
    text = "name: a\nscheduler: local\nmailbox: mail\ntasks: {digits: {}}\n"
    path.write_text(f"{text}exchange: {{hosts: {hosts}}}\n")
    with pytest.raises(SpecError, match=word):
        load_site(path)
    path.write_text(f"{text}exchange: {{hosts: 'x.org:9000'}}\n")
    assert load_site(path).exchange.hosts == ("x.org:9000",)
    path.write_text(text)
    assert load_site(path).exchange.hosts == ()


# --- the process ----------------------------------------------------------------------


def make_task(root, **files):
    records = {
        name: FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }
    return Task(
        op="fetch",
        directory=str(root / "mail/smol/versions/3"),
        origin="http://127.0.0.1:1",
        part_bytes=MIB,
        files=records,
    )


@pytest.fixture
def notes(tmp_path):
    made = Notes(tmp_path / "notes")
    made.path.mkdir()
    return made


def test_without_urls_the_process_leaves_and_tells_what_it_wants(tmp_path, notes):
    notes.begin(make_task(tmp_path, **{"manifest.json": b"{}"}))
    Worker(notes, patience=0.3).run()
    status = notes.status()
    assert (status.state, status.wants) == ("left", (0,))


def test_a_line_that_is_down_is_told_in_the_end(tmp_path, notes, monkeypatch):
    quick = RetryPolicy(attempts=2, first=0.01)
    monkeypatch.setattr("hansa.site.exchange_worker._RETRY", quick)
    notes.begin(make_task(tmp_path, **{"manifest.json": b"{}"}))
    notes.supply({0: "/x?SECRET"}, 600.0)
    Worker(notes).run()
    status = notes.status()
    assert status.state == "failed"
    assert "Connection refused" in str(status.error)
    assert "SECRET" not in json.dumps(dict(status.error))
    assert not (notes.path / "urls.json").exists()


def test_a_process_that_dies_again_and_again_is_given_up(open_facility, monkeypatch):
    monkeypatch.setattr("hansa.site.exchange._START", "true")  # it dies at once
    states = [open_facility.data(fetch())["state"] for _ in range(7)]
    assert states == ["moving"] * 6 + ["failed"]
    again = open_facility.data(fetch(ticket="bb"))
    assert again["state"] == "moving"  # another try begins anew


def test_an_ended_exchange_is_told_under_its_ticket_only(open_facility, monkeypatch):
    monkeypatch.setattr("hansa.site.exchange._START", "true")
    open_facility.data(fetch())
    (folder,) = (open_facility.own / "exchange").iterdir()
    Notes(folder).show(Status(state="done", have={}, moved=2))
    assert open_facility.data(fetch())["state"] == "done"
    assert open_facility.data(fetch())["moved"] == 2
    assert open_facility.data(fetch(ticket="bb"))["state"] == "moving"


def test_a_process_that_brings_something_may_die_more_often(open_facility, monkeypatch):
    monkeypatch.setattr("hansa.site.exchange._START", "true")
    open_facility.data(fetch())
    (folder,) = (open_facility.own / "exchange").iterdir()
    here = socket.gethostname()
    for moved in range(1, 10):
        Notes(folder).show(Status(state="moving", have={}, moved=moved, host=here))
        assert open_facility.data(fetch())["state"] == "moving"


@pytest.mark.parametrize("state", ["done", "moving"])
def test_urls_that_come_too_late_are_removed(open_facility, monkeypatch, state):
    monkeypatch.setattr("hansa.site.exchange._START", "true")
    open_facility.data(fetch(urls={"0": "/x?SECRET"}))
    (folder,) = (open_facility.own / "exchange").iterdir()
    assert (folder / "urls.json").exists()
    notes = Notes(folder)
    if state == "moving":
        notes.note_tries(Tries(("aa",), 5))  # the next death is the last one
    else:
        notes.show(Status(state="done", have={}))
    open_facility.data(fetch())
    assert not (folder / "urls.json").exists()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"503 Slow\r\nContent-Length: 99\r\n\r\n<Error>", LineFault, "answers 503"),
        (b"403 No\r\nContent-Length: 99\r\n\r\n<Error>", Refusal, "answers 403"),
        (b"200 OK\r\nContent-Length: 9\r\n\r\n123", NotThere, "size"),
        (b"200 OK\r\nContent-Length: 4\r\n\r\n123", LineFault, "broke off"),
        (b"307 No\r\nLocation: http://127.0.0.1:1/x\r\n\r\n", Unusable, "redirect"),
    ],
)
def test_answers_that_break_off_are_faults_of_the_line(answer, kind, words):
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve():
            line, _ = door.accept()
            with line:
                line.recv(1 << 16)
                line.sendall(b"HTTP/1.1 " + answer)

        serving = threading.Thread(target=serve)
        serving.start()
        service = Service(f"http://127.0.0.1:{door.getsockname()[1]}")
        with pytest.raises(kind, match=words) as caught:
            list(service.get("/x?SECRET", 0, 4))
        serving.join()
    assert type(caught.value) is kind
    assert "SECRET" not in str(caught.value)


def test_an_unreadable_status_counts_as_none(notes):
    (notes.path / "status.json").write_text("{")
    assert notes.status() == NOTHING
    (notes.path / "status.json").write_text('{"state": 1}')
    assert notes.status() == NOTHING


def test_tries_and_tasks_are_read_as_they_were_written(tmp_path, notes):
    task = make_task(tmp_path, a=b"x")
    notes.begin(task)
    notes.note_tries(Tries(("aa", "bb"), 2))
    assert notes.task() == task
    assert notes.task().name == task.name
    assert notes.tries() == Tries(("aa", "bb"), 2)
    for path in notes.path.iterdir():
        assert path.stat().st_mode & 0o077 == 0


class Side:
    """A side whose line does what a test says, piece by piece."""

    def __init__(self, *does):
        self.does = list(does)
        self.carried = []

    def prepare(self):
        return {}

    def carry(self, piece, target, start):
        self.carried.append((piece.number, target))
        what = self.does.pop(0) if self.does else piece.length
        if isinstance(what, Exception):
            raise what
        yield what
        if start + what < piece.length:
            raise LineFault("it broke")

    def complete(self, name):
        pass

    def settle(self):
        pass

    def make_room(self):
        self.carried.append("made room")


@pytest.fixture
def work(tmp_path, notes, monkeypatch):
    """Have one thread carry three pieces; return the status in the end."""
    monkeypatch.setattr("hansa.site.exchange_worker._THREADS", 1)
    quick = RetryPolicy(attempts=3, first=0.001)
    monkeypatch.setattr("hansa.site.exchange_worker._RETRY", quick)

    def carry(*does, supply=None):
        notes.begin(make_task(tmp_path, **{"a": bytes(MIB + 1), "b": b"x"}))
        notes.supply({n: f"/{n}" for n in range(3)}, 600.0)
        worker = Worker(notes, patience=0.3)
        worker._side = side = Side(*does)
        if supply is not None:
            give_up = Board.stumble

            def stumble(board, piece, fault):
                give_up(board, piece, fault)
                board.supply({piece.number: (supply, 1e12)})

            monkeypatch.setattr(Board, "stumble", stumble)
        worker.run()
        return notes.status(), side.carried

    return carry


def test_all_pieces_are_carried_once(work):
    status, carried = work()
    assert status.state == "done"
    assert status.moved == MIB + 2
    assert status.ready == 3
    assert carried == [(0, "/0"), (1, "/1"), (2, "/2")]


def test_a_refused_url_is_not_used_again(work, notes):
    status, carried = work(Refusal("the host answers 403"))
    assert (status.state, status.wants) == ("left", (0,))
    assert carried == [(0, "/0")]
    assert not (notes.path / "urls.json").exists()


def test_the_third_refusal_ends_it(work):
    refusals = [Refusal("the host answers 403") for _ in range(3)]
    status, carried = work(*refusals, supply="/fresh")
    assert carried == [(0, "/0"), (0, "/fresh"), (0, "/fresh")]
    assert status.state == "failed"
    assert "answers 403" in status.error["message"]
    assert not status.error["transient"]


def test_faults_are_tried_again_a_few_times(work):
    status, carried = work(*[LineFault("it broke") for _ in range(3)])
    assert len(carried) == 3
    assert status.state == "failed"
    assert status.error["transient"]
    assert status.faults == 3


def test_faults_count_anew_when_something_came(work):
    broke = [LineFault("it broke"), LineFault("it broke")]
    status, _ = work(*broke, 1, *broke[:1], 1, *broke[:1])
    assert status.state == "done"
    assert status.faults == 6


def test_what_no_other_try_mends_ends_it_at_once(work):
    status, carried = work(Unusable("the certificate is wrong"))
    assert len(carried) == 1
    assert not status.error["transient"]


def test_damage_is_told_by_file_and_the_others_go_on(work):
    status, carried = work(NotThere("it is gone"))
    assert status.state == "failed"
    assert status.damaged == ("a",)
    assert "a is not in the bucket: it is gone" in status.error["message"]
    assert [number for number, _ in carried] == [0, 2]


def test_a_full_disk_is_not_left_full(work):
    status, carried = work(1, StorageFull("No space is left."))
    assert carried[-1] == "made room"
    assert status.error["message"] == "No space is left."


def test_what_has_arrived_gives_its_room_back(tmp_path):
    task = make_task(tmp_path, a=b"x")
    arriving = Arriving(task, Service(task.origin))
    assert arriving.prepare() == {"a": False}
    parent = tmp_path / "mail/smol/versions"
    assert len(list(parent.iterdir())) == 1
    arriving.make_room()
    assert list(parent.iterdir()) == []


def test_a_surprise_is_told_without_its_text(work, notes, capfd):
    status, _ = work(ValueError("https://host/x?SECRET"))
    assert "failed: ValueError" in status.error["message"]
    assert "SECRET" not in json.dumps(status.error) + "".join(capfd.readouterr())


# --- the board ------------------------------------------------------------------------

PIECES = cut({"a": FileRecord(bytes=3 * MIB, sha256="0" * 64)}, MIB)


def board(**have):
    return Board(PIECES, Status(state="moving", have=have))


def test_a_url_that_has_ended_is_wanted_again_and_not_used():
    made = board()
    assert made.status().wants == (0, 1, 2)
    made.supply({0: ("/old", 1.0), 1: ("/good", 1e12)})
    assert made.status().wants == (0, 2)
    assert made.begin(PIECES[1]) == "/good"


def test_what_is_there_is_not_done_again():
    made = board(**{"0": MIB, "2": MIB})
    assert made.status().ready == 1
    assert made.take() == PIECES[1]
    assert made.take() is None
    made.advance(PIECES[1], MIB)
    assert not made.whole("a")  # somebody is still about it
    assert made.put_back(PIECES[1])
    assert made.status().ready == 3
    assert made.whole("a")


def test_pieces_are_bounded():
    with pytest.raises(TransferError, match="more than 10000"):
        cut({"a": FileRecord(bytes=1 << 44, sha256="0" * 64)}, MIB)
