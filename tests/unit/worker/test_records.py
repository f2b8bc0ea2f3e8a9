"""Records as JSON lines, in each of the layouts, and errors with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hansa.core.errors import SpecError
from hansa.worker.base import Example
from hansa.worker.tasks.records import read_records


def write(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_one_file_with_tasks_and_splits(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write(
        path,
        {"task": "esol", "input": "a", "output": "b", "extra": 1},
        {"input": "c", "output": "d", "split": "test"},
        {"input": "e", "output": "f"},
    )
    assert read_records(path, "train") == [
        Example("esol", "a", "b"),
        Example("mine", "e", "f"),
    ]
    assert read_records(path, "test") == [Example("mine", "c", "d")]


@pytest.mark.parametrize("prefix", ["raw", "."])
def test_folder_of_tasks_as_smolinstruct_has_it(tmp_path: Path, prefix: str) -> None:
    write(tmp_path / prefix / "train" / "b.jsonl", {"input": "1", "output": "2"})
    write(tmp_path / prefix / "train" / "a.jsonl", {"input": "3", "output": "4"})
    write(tmp_path / prefix / "test" / "a.jsonl", {"input": "5", "output": "6"})
    assert read_records(tmp_path, "train") == [
        Example("a", "3", "4"),
        Example("b", "1", "2"),
    ]
    assert read_records(tmp_path, "test") == [Example("a", "5", "6")]


def test_folder_with_one_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"task": "t", "input": "1", "output": "2"})
    # The file says which split it is.
    more = {"split": "train", "input": "3", "output": "4"}
    write(tmp_path / "test.jsonl", {"task": "t", **more})
    assert read_records(tmp_path, "test") == [Example("t", "3", "4")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"data\.jsonl:2 is no JSON"),
        ("[1]", r"data\.jsonl:2 is no record"),
        ('{"input": "a"}', r"data\.jsonl:2 has no 'output'"),
        ('{"input": "a", "output": 3}', r"data\.jsonl:2: 'output' must be text"),
        ('{"input": "a", "output": "", "task": 3}', "'task' must be text"),
        ('{"input": "a", "output": "", "split": "tran"}', "2: the split 'tran' is unk"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"input": "", "output": ""}\n' + line + "\n")
    with pytest.raises(SpecError, match=words):
        read_records(path, "train")


def test_blank_lines_count_but_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"input": "x", "output": "y"}\n\nnope\n')
    with pytest.raises(SpecError, match=r"data\.jsonl:4"):
        read_records(path, "train")


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="no UTF-8"):
        read_records(path, "train")


def test_a_file_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "a.jsonl").mkdir(parents=True)
    with pytest.raises(SpecError, match=r"a\.jsonl can't be read: Is a directory"):
        read_records(tmp_path, "train")


def test_missing_source_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no 'train' records") as info:
        read_records(tmp_path / "nowhere", "train")
    assert "site.yaml" in str(info.value.hint)
