"""A trial looks around and says what would stop the real jobs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worker_place import NO_ORDER, Place

import hansa
from hansa.core import plugins
from hansa.worker import trial
from hansa.worker.__main__ import main
from hansa.worker.gpus import Gpu
from hansa.worker.job import AnyJob, NodePart, read_job
from hansa.worker.ranks import Present
from hansa.worker.trial import Trial, gpu_problems, load_plugin
from hansa.worker.walltime import Walltime

NAME = "trial-0001-a-1"
BIG = Gpu("A100", 40_000_000_000)


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the real one takes seconds, and here it sees nothing."""
    monkeypatch.setitem(sys.modules, "torch", None)


def job(place: Place, **fields: Any) -> AnyJob:
    return read_job(path(place, **fields))


def path(place: Place, **fields: Any) -> Path:
    return place.job(assignment=NAME, order=NO_ORDER, **fields)


def nothing(group: str, name: str) -> None:
    return None


def test_a_trial_by_the_command_line(place: Place) -> None:
    began = time.time()
    node = {"gpus": 0, "gpu_memory": None}
    # Counted from the start of this process, which may have run many tests before.
    day = 86_400.0
    assert main(["trial", str(path(place, node=node, walltime_s=day))]) == 0
    status = place.status(assignment=NAME)
    found = status["found"]
    assert (status["phase"], status["error"]) == ("done", None)
    assert found["host"] == os.uname().nodename
    assert found["python"] == sys.version.split()[0]
    assert found["hansa"] == hansa.__version__
    assert found["torch"] is None
    assert found["mailbox_writable"]
    assert 0 < found["walltime_left_s"] <= day
    assert began <= found["at"] <= time.time()
    assert found["problems"] == []
    assert not place.mailbox.updates.exists()


def test_imports_that_fail_are_named(place: Place) -> None:
    def load(group: str, name: str) -> None:
        if name == "chem-instruct":
            raise ModuleNotFoundError("No module named 'rdkit'")
        if name == "softmax":
            raise OSError("libcudart.so: cannot open")

    found = Trial(job(place), Walltime(), load=load, tools=list).look()
    assert found["imports_failed"] == {
        "task chem-instruct": "ModuleNotFoundError: No module named 'rdkit'",
        "trainer softmax": "OSError: libcudart.so: cannot open",
    }
    assert found["walltime_left_s"] is None


def test_plugins_are_really_imported() -> None:
    assert load_plugin(plugins.TASKS, "digits").__name__ == "Digits"


@pytest.mark.parametrize(
    ("gpus", "node", "words"),
    [
        ([], NodePart(), ""),
        ([BIG], NodePart(), ""),
        ([BIG] * 4, NodePart(gpus=4, gpu_memory=42_000_000_000), ""),
        ([BIG] * 3, NodePart(gpus=4), "shows 3 GPUs"),
        ([BIG] * 4, NodePart(gpus=4, gpu_memory=80_000_000_000), "has 40.0 GB"),
    ],
)
def test_gpus_are_compared_with_site_yaml(
    gpus: list[Gpu], node: NodePart, words: str
) -> None:
    problems = gpu_problems(node, gpus)
    assert bool(problems) == bool(words)
    for problem in problems:
        assert words in problem["what"]
        assert "environment.directives" in problem["hint"]


def test_gpus_hidden_from_this_process_are_found_by_the_tools(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(name="A100", total_memory=BIG.memory_bytes)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: here,
    )
    torch = SimpleNamespace(__version__="2.13.0", cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    node = {"gpus": 4, "gpu_memory": 40_000_000_000}
    look = Trial(
        job(place, node=node), Walltime(), load=nothing, tools=lambda: [BIG] * 4
    ).look
    found = look()
    assert found["torch"] == "2.13.0"
    assert found["gpus"] == [{"name": "A100", "memory_bytes": 40_000_000_000}] * 4
    assert found["problems"] == []


def test_tiles_of_listed_cards_are_counted(place: Place) -> None:
    """Each rank sees its own tile only, and the tool lists cards of two tiles."""
    card = Gpu("Max 1550", 128 * 1024**3)
    node = {"gpus": 12, "gpu_memory": 64_000_000_000}
    found = Trial(
        job(place, node=node), Walltime(), load=nothing, tools=lambda: [card] * 6
    ).look()
    assert found["problems"] == []
    assert len(found["gpus"]) == 12
    assert {gpu["memory_bytes"] for gpu in found["gpus"]} == {64 * 1024**3}


@pytest.mark.parametrize(
    ("cards", "memory"), [(5, 64_000_000_000), (6, 128_000_000_000), (0, 1), (6, None)]
)
def test_too_few_or_small_cards_are_still_seen(
    place: Place, cards: int, memory: int | None
) -> None:
    card = Gpu("Max 1550", 128 * 1024**3)
    node = {"gpus": 12, "gpu_memory": memory}
    found = Trial(
        job(place, node=node), Walltime(), load=nothing, tools=lambda: [card] * cards
    ).look()
    assert f"shows {cards} GPUs" in found["problems"][0]["what"]


def test_a_mailbox_that_can_not_be_written_is_a_problem(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, data: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(trial, "write_json", read_only)
    found = Trial(job(place), Walltime(), load=nothing, tools=list).look()
    assert not found["mailbox_writable"]
    assert "can't be written from" in found["problems"][0]["what"]


def test_it_says_where_the_ranks_were(place: Place) -> None:
    present = [
        Present(rank, 3, None, "PALS", host, "", 1, "")
        for rank, host in enumerate(("n1", "n1", "n2"))
    ]
    found = Trial(job(place), Walltime(), present, load=nothing, tools=list).look()
    assert found["ranks"] == {
        "launcher": "PALS",
        "world": 3,
        "by_host": {"n1": 2, "n2": 1},
    }


def test_a_trial_that_crashes_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(self: Trial) -> None:
        raise RuntimeError("odd node")

    monkeypatch.setattr(Trial, "look", look)
    assert main(["trial", str(path(place))]) == 1
    status = place.status(assignment=NAME)
    assert status["phase"] == "failed"
    assert "odd node" in status["error"]["message"]
