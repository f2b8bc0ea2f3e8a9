"""Packed updates come over once, and whole."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hansa.coordinator.delivery import Delivery
from hansa.core.commands import WorkOrder
from hansa.core.errors import UpdateRejected
from hansa.core.events import UpdateArrived
from hansa.core.files import FileRecords
from hansa.mailbox.paths import Mailbox
from hansa.mover import base
from hansa.mover.base import Moved
from hansa.mover.posix import PosixMover, PosixOptions
from hansa.store import Measured, Store, reader, write_update
from hansa.store.update import write_evaluation

A = "train-0001-a-1"
RAW = "update-00001-of-00001.safetensors"


class Counting(PosixMover):
    gets = 0

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        self.gets += 1
        return await super().get(source, target, files)


class Place:
    """A store, a mailbox with one packed update, and the delivery between them."""

    def __init__(self, root: Path) -> None:
        self.mailbox = Mailbox(root / "mailbox", "run")
        (root / "initial").mkdir()
        save_file({"w": np.zeros(900, np.float32)}, root / "initial/m.safetensors")
        self.store = Store(root / "run", "float32")
        self.store.import_initial(root / "initial")
        self.mover = Counting(PosixOptions(), base.Place(mailbox=self.mailbox.root))
        self.values = np.linspace(-1, 1, 900, dtype=np.float32)
        self.update = self.mailbox.update(A)
        self.manifest = write_update(
            self.update,
            {"w": (900,)},
            [("w", self.values)],
            Measured(assignment=A, facility="a", base=0, steps=1, samples=1),
            dtype="int8",
            compress="zstd",
        )

    async def collect(self, **told: object) -> UpdateArrived:
        async def connect() -> Counting:
            return self.mover

        delivery = Delivery(
            "run",
            "a",
            connect,
            self.store,
            newest=lambda: 0,
            keep=set,
            settled=list,
        )
        data: dict[str, Any] = json.loads((self.update / "manifest.json").read_text())
        data |= told
        order = WorkOrder(assignment=A, kind="train", round=1, steps=1)
        event = await delivery.collect(order, 0, data)
        assert isinstance(event, UpdateArrived)
        return event

    def read(self) -> Any:
        with reader(self.store.update_dir(A)) as folder:
            return folder.read("w")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_packed_update_is_fetched_once(place: Place) -> None:
    first = asyncio.run(place.collect())
    (record,) = place.manifest.files.values()
    assert first.bytes == record.bytes
    assert np.abs(place.read() - place.values).max() <= 1.01 / 127
    # After a crash the lane collects again: nothing need come over.
    again = asyncio.run(place.collect())
    assert place.mover.gets == 1
    assert again.bytes == first.bytes
    assert again.timings["transfer_s"] == 0.0


def test_what_was_damaged_here_is_fetched_anew(place: Place) -> None:
    asyncio.run(place.collect())
    before = place.read()
    raw = place.store.update_dir(A) / RAW
    data = bytearray(raw.read_bytes())
    data[-1] ^= 1
    raw.write_bytes(data)
    asyncio.run(place.collect())
    assert place.mover.gets == 2
    assert np.array_equal(place.read(), before)


def test_a_crash_before_unpacking_fetches_nothing_again(place: Place) -> None:
    target = place.store.update_dir(A)
    asyncio.run(place.mover.get(f"run/updates/{A}", target, place.manifest.files))
    (target / f".{RAW}.unpacking").write_bytes(b"half")
    event = asyncio.run(place.collect())
    assert event.bytes == place.manifest.bytes
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", RAW]


# --- a facility that lies ------------------------------------------------------------


def test_more_steps_than_ordered_are_refused(place: Place) -> None:
    # FedNova and the estimates of speed divide by them.
    with pytest.raises(UpdateRejected, match="comes from 5 steps; 1 were ordered"):
        asyncio.run(place.collect(steps=5))
    assert place.mover.gets == 0


def test_what_can_not_fit_is_not_even_fetched(place: Place) -> None:
    files = place.manifest.model_dump(mode="json")["files"]
    (name,) = files
    files[name]["bytes"] = 10**12
    with pytest.raises(UpdateRejected, match="an update of this model has"):
        asyncio.run(place.collect(files=files))
    with pytest.raises(UpdateRejected, match="tensor 'w' is missing"):
        asyncio.run(place.collect(tensors={}))
    assert place.mover.gets == 0


def test_the_files_must_come_with_the_manifest_that_was_shown(place: Place) -> None:
    with pytest.raises(UpdateRejected, match="another manifest than the one"):
        asyncio.run(place.collect(samples=7))


def test_an_evaluation_can_not_stand_in_for_an_update(place: Place) -> None:
    shutil.rmtree(place.update)
    measured = Measured(assignment=A, facility="a", base=0, steps=1, samples=1)
    write_evaluation(place.update, measured)
    empty = {"files": {}, "unpacked": {}, "tensors": {}, "dtype": "float32"}
    with pytest.raises(UpdateRejected, match="tensor 'w' is missing"):
        asyncio.run(place.collect(kind="update", **empty))
