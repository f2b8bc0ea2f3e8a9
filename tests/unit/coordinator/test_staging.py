"""Versions and states come to a mailbox, once; bases that are gone are refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hansa.coordinator.delivery import Delivery
from hansa.core.commands import StateSum, Term, WorkOrder
from hansa.core.errors import StoreError, UpdateRejected
from hansa.mailbox.paths import Mailbox
from hansa.mover import base
from hansa.mover.posix import PosixMover, PosixOptions
from hansa.store import Measured, Store, reader, write_update

A = "train-0001-a-1"
REF = "state/correction-a/1"
SHAPES = {"w": (5,)}


class Place:
    """A store with version 1 and a state of it, and a facility's mailbox."""

    def __init__(self, root: Path) -> None:
        self.mailbox = Mailbox(root / "mailbox", "run")
        draft = root / "draft"
        draft.mkdir()
        save_file({"w": np.zeros(5, np.float32)}, draft / "m.safetensors")
        self.store = Store(root / "run", "float32")
        self.store.import_initial(draft)
        self.write(self.store.update_dir(A))
        update = Term(ref=f"update/{A}", coefficient=0.5)
        terms = (Term(ref="version/0", coefficient=1.0), update)
        states = (StateSum(name="correction-a", terms=(update,)),)
        self.store.aggregate(1, terms, states=states)
        self.delivery = Delivery(
            "run", "a", self._connect, self.store,
            newest=lambda: 1, keep=set, settled=list, staged=lambda: {0},
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        measured = Measured(assignment=A, facility="a", base=0, steps=1, samples=1)
        values = [("w", np.full(5, 2, np.float32))]
        write_update(folder, SHAPES, values, measured, dtype="float32")

    async def _connect(self) -> PosixMover:
        return PosixMover(PosixOptions(), base.Place(mailbox=self.mailbox.root))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_state_is_staged_once_and_again_when_it_was_damaged(place: Place) -> None:
    staged = asyncio.run(place.delivery.stage_state(REF))
    assert staged is not None
    assert (staged.state, staged.version) == ("correction-a", 1)
    assert staged.what == "correction-a of version 1"
    there = place.mailbox.state(REF)
    with reader(there) as state:
        assert np.array_equal(state.read("w"), np.ones(5, np.float32))
    assert asyncio.run(place.delivery.stage_state(REF)) is None
    (file,) = there.glob("*.safetensors")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert asyncio.run(place.delivery.stage_state(REF)) is None  # it is not looked at
    place.delivery.check_again()
    assert asyncio.run(place.delivery.stage_state(REF)) is not None
    assert (there / file.name).read_bytes() == (
        place.store.state_dir(REF) / file.name
    ).read_bytes()


@pytest.mark.parametrize("ref", ["state/correction-a/7", "state/nobody/1", "version/1"])
def test_a_state_that_does_not_exist_is_an_error(place: Place, ref: str) -> None:
    with pytest.raises(StoreError):
        asyncio.run(place.delivery.stage_state(ref))


def test_what_was_staged_before_and_now_is_remembered(place: Place) -> None:
    asyncio.run(place.delivery.stage(1))
    asyncio.run(place.delivery.stage_state(REF))
    assert place.delivery.staged() == {0, 1}


def test_an_update_whose_base_was_removed_is_refused_with_a_remedy(
    place: Place,
) -> None:
    place.write(place.mailbox.update(A))
    data = json.loads((place.mailbox.update(A) / "manifest.json").read_text())
    data["base"] = 1
    place.store.collect_garbage(1)
    version = place.store.version_dir(1)
    version.rename(version.with_name("gone"))
    order = WorkOrder(assignment=A, kind="train", round=1, steps=1)
    with pytest.raises(UpdateRejected, match="version 1, which this server") as error:
        asyncio.run(place.delivery.collect(order, 1, data))
    assert "keep.versions" in str(error.value.hint)
