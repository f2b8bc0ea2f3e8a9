from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import resource
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.codec import to_json
from hansa.core.errors import (
    JournalCorrupt,
    JournalError,
    JournalLocked,
    JournalTooNew,
    StorageFull,
)
from hansa.core.events import Event, RunResumed, TimerFired, UpdateArrived
from hansa.journal import Journal, Lease, Record, journal, read
from hansa.journal.line import encode

EVENTS: list[Event] = [
    RunResumed(at=0.5),
    TimerFired(at=1.0, timer="fünf\n\u2028"),
    UpdateArrived(
        at=2.0,
        facility="polaris",
        assignment="train-0001-polaris-1",
        base=0,
        steps=30,
        samples=960,
        partial=False,
        bytes=12,
        metrics={"train_loss": 0.25, "bad": float("inf")},
    ),
]
RECORDS = [Record(n, f"d{n}", event) for n, event in enumerate(EVENTS, start=1)]


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    with Lease.acquire(tmp_path / "journal.lease") as held:
        yield held


@pytest.fixture
def path(tmp_path: Path, lease: Lease) -> Path:
    """A journal of three records."""
    file = tmp_path / "journal.jsonl"
    with Journal.open(file, lease) as journal:
        for record in RECORDS:
            assert journal.append(record.event, record.digest) == record
    return file


def framed(body: str) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(body.encode()) + body[1:].encode() + b"\n"


def test_what_was_appended_is_read(path: Path) -> None:
    assert list(read(path)) == RECORDS


def test_the_line_is_the_documented_one(path: Path) -> None:
    first = path.read_bytes().splitlines()[0]
    body = '{"seq":1,"digest":"d1","event":{"type":"RunResumed","schema":1,"at":0.5}}'
    assert first + b"\n" == framed(body)
    for line in path.read_text(encoding="ascii").splitlines():
        assert list(json.loads(line)) == ["crc", "seq", "digest", "event"]


def test_appending_goes_on_where_it_ended(path: Path, lease: Lease) -> None:
    with Journal.open(path, lease) as journal:
        assert journal.seq == 3
        assert journal.append(EVENTS[0], "x").seq == 4
        assert journal.seq == 4
    assert [record.seq for record in read(path)] == [1, 2, 3, 4]


def test_a_record_is_on_disk_when_append_returns(
    tmp_path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    write, sync = os.write, os.fsync

    def spy_write(fd: int, data: bytes) -> int:
        done.append(("write", fd))
        return write(fd, data)

    def spy_sync(fd: int) -> None:
        done.append(("fsync", fd))
        sync(fd)

    with Journal.open(tmp_path / "j", lease) as journal:
        monkeypatch.setattr(os, "write", spy_write)
        monkeypatch.setattr(os, "fsync", spy_sync)
        journal.append(EVENTS[0], "x")
        assert [name for name, _ in done] == ["write", "fsync"]
        assert done[0][1] == done[1][1]


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(
    path: Path, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    whole = path.read_bytes()
    last = len(encode(RECORDS[2]))
    for cut in range(len(whole) - last + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(read(path)) == RECORDS[:2]
        assert path.stat().st_size == cut  # A reader changes nothing.
        caplog.clear()
        with caplog.at_level(logging.WARNING), Journal.open(path, lease) as journal:
            assert journal.append(EVENTS[2], "d3") == RECORDS[2]
        assert "torn last line was cut off" in caplog.text
        assert path.read_bytes() == whole


def test_a_whole_journal_is_not_cut(
    path: Path, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        Journal.open(path, lease).close()
    assert caplog.text == ""


def test_a_torn_line_of_zeros_is_cut_off(path: Path, lease: Lease) -> None:
    with path.open("ab") as file:
        file.write(bytes(100))
    Journal.open(path, lease).close()
    assert list(read(path)) == RECORDS


def test_a_flipped_byte_shows_in_every_place(path: Path, lease: Lease) -> None:
    whole = path.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        line = sum(end < place for end in ends) + 1
        if line == 3:  # The last line counts as torn.
            assert list(read(path)) == RECORDS[:2]
        elif place == ends[1]:  # Lines 2 and 3 ran together, and are now the last.
            assert list(read(path)) == RECORDS[:1]
        else:
            with pytest.raises(JournalCorrupt, match=rf"jsonl, line {line} is") as bad:
                list(read(path))
            assert f"first {line - 1} lines" in str(bad.value.hint)
            with pytest.raises(JournalCorrupt):
                Journal.open(path, lease)


def test_recovery_reads_up_to_the_damage(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"x" + lines[1] + lines[2])
    assert list(read(path, recover=True)) == RECORDS[:1]
    assert "line 2 is damaged" in caplog.text


def test_a_missing_line_is_a_gap(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(JournalCorrupt, match=r"line 2 .* number 3; 2 is due"):
        list(read(path))


def test_a_newer_schema_is_told_from_damage(path: Path) -> None:
    body = '{"seq":4,"digest":"","event":{"type":"Sailed","schema":2}}'
    with path.open("ab") as file:
        file.write(framed(body))
    with pytest.raises(JournalTooNew, match=r"jsonl, line 4: .*schema 2") as caught:
        list(read(path, recover=True))
    assert "newer" in str(caught.value.hint)


@pytest.mark.parametrize(
    "body",
    [
        '{"seq":4,"digest":""}',
        '{"seq":4,"digest":"","event":{"type":"Sailed","schema":1}}',
        '{"seq":4,"digest":"","event":{"type":"RunResumed","schema":1}}',
        '{"seq":4,"digest":"","event":[]}',
        '{"seq":"4","digest":"","event":{}}',
        '{"seq":4,"digest":"","event":',
        "{4",
    ],
)
def test_a_line_that_is_no_record_is_damage(path: Path, body: str) -> None:
    with path.open("ab") as file:
        file.write(framed(body))
    with pytest.raises(JournalCorrupt, match="line 4 is damaged"):
        list(read(path))


def test_there_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="There is no journal"):
        list(read(tmp_path / "nowhere"))


def test_an_empty_journal_is_empty(tmp_path: Path, lease: Lease) -> None:
    with Journal.open(tmp_path / "j", lease) as journal:
        assert journal.seq == 0
    assert list(read(tmp_path / "j")) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_a_valid_journal(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    before = path.read_bytes()
    write = os.write
    full = True

    def fail(fd: int, data: bytes = b"") -> int:
        nonlocal full
        if full and call == "write" and len(data) > 20:
            return write(fd, data[:20])
        if full:
            full = False
            raise OSError(code, "no room")
        return write(fd, data) if data else 0

    with Journal.open(path, lease) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(StorageFull, match="no room") as caught:
                journal.append(TimerFired(at=3.0, timer="x"), "y")
        assert "quota" in str(caught.value.hint)
        assert path.read_bytes() == before
        assert journal.append(EVENTS[0], "again").seq == 4
    assert len(list(read(path))) == 4


@pytest.mark.integration
def test_a_real_limit_is_met(path: Path, lease: Lease) -> None:
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(path, lease) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, hard))
        try:
            with pytest.raises(StorageFull):
                journal.append(TimerFired(at=3.0, timer="x"), "y")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before


def test_after_a_disk_error_nothing_more_is_written(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = path.read_bytes()
    with Journal.open(path, lease) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            with pytest.raises(JournalError, match="Input/output"):
                journal.append(EVENTS[0], "x")
        with pytest.raises(JournalError, match="failed before"):
            journal.append(EVENTS[0], "x")
    assert path.read_bytes() == before


def test_a_line_that_can_not_be_cut_back_is_reported(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Journal.open(path, lease) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(JournalError, match="nor cut back"):
                journal.append(EVENTS[0], "x")
        with pytest.raises(JournalError, match="failed before"):
            journal.append(EVENTS[0], "x")
    # Whatever was left is mended by the next writer.
    with Journal.open(path, lease) as journal:
        assert journal.seq == 3


def test_a_second_writer_is_noticed(path: Path, lease: Lease) -> None:
    with Journal.open(path, lease) as one, Journal.open(path, lease) as two:
        two.append(EVENTS[0], "x")
        with pytest.raises(JournalLocked, match="Another process has written"):
            one.append(EVENTS[0], "x")
    assert len(list(read(path))) == 4


def test_a_closed_journal_writes_nothing(path: Path, lease: Lease) -> None:
    journal = Journal.open(path, lease)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.append(EVENTS[0], "x")


def test_reading_while_a_line_is_being_written(path: Path) -> None:
    line = encode(Record(4, "d4", EVENTS[0]))
    reads = [*path.read_bytes().splitlines(keepends=True), line[:30], line[30:]]

    class Growing(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            return reads.pop(0) if reads else b""

    assert [record for record, _ in journal._scan(path, Growing())] == RECORDS


@given(
    at=st.floats(0, 1e9),
    text=st.text(),
    digest=st.text(),
)
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, at: float, text: str, digest: str
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    record = Record(1, digest, TimerFired(at=at, timer=text))
    path.write_bytes(encode(record))
    assert list(read(path)) == [record]


def test_a_loss_that_is_nan_can_be_journaled(tmp_path: Path, lease: Lease) -> None:
    event = replace(EVENTS[2], metrics={"eval_loss": float("nan")})
    with Journal.open(tmp_path / "j", lease) as journal:
        journal.append(event, "")
    line = (tmp_path / "j").read_text()
    assert json.loads(line, parse_constant=pytest.fail)  # JSON knows no NaN.
    (record,) = read(tmp_path / "j")
    assert isinstance(record.event, UpdateArrived)
    assert math.isnan(record.event.metrics["eval_loss"])


@given(st.one_of([st.from_type(kind) for kind in get_args(Event)]))
def test_a_line_is_the_compact_json_of_its_record(event: Event) -> None:
    def plain(value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list) else value

    record = {"seq": 7, "digest": "d", "event": plain(to_json(event))}
    body = json.dumps(record, separators=(",", ":")).encode("ascii")
    head = b'{"crc":"%08x",' % zlib.crc32(body)
    assert encode(Record(7, "d", event)) == head + body[1:] + b"\n"
