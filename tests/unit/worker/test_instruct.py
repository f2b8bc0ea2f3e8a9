"""The task `instruct`: forms of lines, layouts, errors, and an index that is shared."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansa.core.errors import SpecError
from hansa.worker.base import Example, resolve
from hansa.worker.data import Batches
from hansa.worker.options import InstructOptions
from hansa.worker.plugins import INSTRUCT
from hansa.worker.tasks.instruct import Instruct, Lines
from hansa.worker.tasks.line_index import _lines


def lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


def pair(asks: str, **more: str) -> dict[str, str]:
    return {"input": asks, "output": asks.upper(), **more}


def task(source: Path, **options: int) -> Instruct:
    made = resolve(INSTRUCT.target)(
        source, source.parent / "cache", InstructOptions(**options)
    )
    assert isinstance(made, Instruct)
    return made


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße?"},
    {"role": "assistant", "content": "Hallo!", "name": "ignored"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye."},
]


def test_all_forms_of_lines_in_one_file_with_splits_and_groups(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "mine.jsonl",
        {"prompt": "2+2", "completion": "4", "group": "sums", "extra": [1]},
        pair("ü", task="words"),
        {"messages": TALK, "split": "test"},
        pair("last", split="train"),
    )
    path.write_text("\n" + path.read_text().replace("\n", "\n\n"))  # lines 2, 4, 6, 8
    mine = task(path)
    assert mine.groups() == ["mine", "sums", "words"]
    train = mine.load("train", None)
    assert list(train) == [
        Example("mine", "last", "LAST"),
        Example("sums", "2+2", "4"),
        Example("words", "ü", "Ü"),
    ]
    assert [example.place for example in train] == [
        "mine.jsonl:8",
        "mine.jsonl:2",
        "mine.jsonl:4",
    ]
    (talk,) = mine.load("test", ["mine"])
    assert talk.output == "Bye."
    assert talk.input == [{k: m[k] for k in ("role", "content")} for m in TALK[:-1]]
    assert list(mine.load("train", ["words", "sums"])) == [train[2], train[1]]
    assert isinstance(train, Lines)
    assert train[-1] == train[2]
    assert train[::2] == [train[0], train[2]]
    with pytest.raises(IndexError):
        train[3]


def test_folders_name_groups_after_themselves_or_their_files(tmp_path: Path) -> None:
    lines(tmp_path / "dolls" / "train.jsonl", pair("a"), pair("b"))
    lines(tmp_path / "dolls" / "test.jsonl", pair("c"))
    dolls = task(tmp_path / "dolls")
    assert dolls.groups() == ["dolls"]
    assert [example.input for example in dolls.load("test", ["dolls"])] == ["c"]
    lines(tmp_path / "many" / "train" / "x.jsonl", pair("a"))
    lines(tmp_path / "many" / "train" / "y.jsonl", pair("b"), pair("c", group="x"))
    many = task(tmp_path / "many")
    assert [e.input for e in many.load("train", ["x"])] == ["a", "c"]
    assert [e.input for e in many.load("train", None)] == ["a", "c", "b"]


def test_limits_choose_evenly_over_the_files_of_each_group(tmp_path: Path) -> None:
    for name in ("p", "q"):
        numbers = [pair(f"{name}{i}", group="g") for i in range(6)]
        lines(tmp_path / "set" / "train" / f"{name}.jsonl", *numbers, pair("h"))
    limited = task(tmp_path / "set", train_limit=4)
    assert [e.input for e in limited.load("train", ["g"])] == ["p0", "p3", "q0", "q3"]
    assert len(limited.load("train", None)) == 6  # p and q have one each


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", r"bad\.jsonl:2 is no JSON"),
        (b"[" * 100_000, r"bad\.jsonl:2 is no JSON"),
        (b"[1]", r"bad\.jsonl:2 is no record"),
        (b'{"input": "\xff", "output": ""}', r"bad\.jsonl:2 is no UTF-8"),
        (b'{"input": "a", "completion": "b"}', r"bad\.jsonl:2 has neither prompt"),
        (b'{"input": "a", "output": 3}', r"bad\.jsonl:2: 'output' must be text"),
        (
            b'{"input": "a", "output": "\\uD800"}',
            r"bad\.jsonl:2 is no JSON.*surrogates",
        ),
        (b'\xef\xbb\xbf{"input": "a", "output": ""}', r"bad\.jsonl:2 is no JSON.*BOM"),
        (b"\0" * 9, r"bad\.jsonl:2 is no JSON"),
        (b" " * (1 << 20) + b"{}", r"bad\.jsonl:2 is longer than 1 MiB"),
        (b'{"input": "a", "output": "", "group": 3}', "'group' must be text"),
        (b'{"input": "a", "output": "", "split": "dev"}', "split 'dev' is unknown"),
        (b'{"messages": []}', "'messages' must be a list"),
        (b'{"messages": [{"role": "user", "content": "a"}, 1]}', "2: message 2 must"),
        (b'{"messages": [{"role": "boss", "content": "a"}, {}]}', "message 1 must"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"},'
            b' {"role": "user", "content": "a"}]}',
            "the last message must be the assistant's",
        ),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, line: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansa.worker.tasks.line_index._LONGEST", 1 << 20)
    path = lines(tmp_path / "bad.jsonl", pair("good"))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(SpecError, match=words):
        task(path).load("train", None)
    assert not list((tmp_path / "cache").iterdir())  # nothing half done is left


def test_what_is_missing_is_refused_with_what_there_is(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", pair("a", group="sums"), pair("b"))
    mine = task(path)
    with pytest.raises(SpecError, match="no test example") as info:
        mine.load("test", None)
    assert "mine (train: 1), sums (train: 1)" in str(info.value.hint)
    with pytest.raises(SpecError, match="'sum'") as info:
        mine.load("train", ["sums", "sum"])
    assert "Did you mean 'sums'" in str(info.value.hint)
    empty = lines(tmp_path / "empty.jsonl")
    with pytest.raises(SpecError, match="no train example"):
        task(empty).load("train", None)
    with pytest.raises(SpecError, match=r"no data of instruct in .*nowhere"):
        task(tmp_path / "nowhere").groups()
    with pytest.raises(SpecError, match="needs data"):
        Instruct(None, tmp_path, InstructOptions())


def test_the_index_is_built_once_and_anew_for_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "mine.jsonl", *(pair(f"{i}") for i in range(3)))
    old = task(path).load("train", None)
    with monkeypatch.context() as patched:
        patched.setattr("hansa.worker.tasks.line_index._lines", None)
        assert [e.input for e in task(path).load("train", None)] == ["0", "1", "2"]
    again = task(path).load("train", None)
    lines(path, pair("other"), pair("lines"))
    assert [e.input for e in task(path).load("train", None)] == ["other", "lines"]
    with pytest.raises(SpecError, match="was changed while it was in use"):
        again[0]  # not opened before
    assert len(old) == 3

    # What is open already is looked at again with each line.
    now = task(path).load("train", None)
    assert now[0].input == "other"
    lines(path, pair("spoil"), pair("lines"), pair("more"))
    with pytest.raises(SpecError, match="was changed while it was in use"):
        now[1]


def test_a_file_that_grows_while_it_is_indexed_gets_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "mine.jsonl", pair("a"), pair("b"))

    def growing(place: Path) -> Iterator[tuple[int, int, bytes]]:
        yield from _lines(place)
        place.write_text(place.read_text() + json.dumps(pair("c")) + "\n")

    monkeypatch.setattr("hansa.worker.tasks.line_index._lines", growing)
    with pytest.raises(SpecError, match="was changed while it was in use"):
        task(path).load("train", None)
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", pair("a"))
    task(path).load("train", None)
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "names.json").write_text("{")
    with pytest.raises(SpecError, match=r"index of .* is damaged") as info:
        task(path).load("train", None)
    assert str(folder) in str(info.value.hint)


def test_many_may_build_the_index_at_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", *(pair(f"{i}") for i in range(2000)))
    ready, found = threading.Barrier(4), []

    def load() -> None:
        ready.wait()
        found.append(list(task(path).load("train", None)))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(one) for one in found] == [2000] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_stream_of_batches_reads_them_line_by_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", *(pair(f"{i}") for i in range(10)))
    batches = Batches(task(path).load("train", None), 5, seed=1, facility="a")
    seen = [e.input for step in range(2) for e in batches[step]]
    assert sorted(seen, key=int) == [f"{i}" for i in range(10)]
