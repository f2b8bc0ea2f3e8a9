"""How fast movers are: what is moved, what is measured, what is left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import SITE

from hansa.coordinator import transfer_bench as bench
from hansa.coordinator.bundle import Bundle
from hansa.core.errors import FacilityError, TransferError
from hansa.core.files import FileRecords, remembered
from hansa.mover.base import MANIFEST, Moved, Place, Progress
from hansa.mover.posix import PosixMover, PosixOptions
from hansa.spec.load import federation_from_text

FEDERATION = """\
name: lines
model: {{trainer: softmax, source: zeros, dtype: float32}}
task: digits
strategy: {{name: fedavg}}
stop: {{rounds: 1}}
patience: 1
defaults: {{mover: posix, work: {{steps: 1}}}}
facilities:
  alpha: {{gateway: {{type: local, site: {root}/alpha.yaml}}}}
  beta: {{gateway: {{type: local, site: {root}/absent.yaml}}}}
"""


def measured(
    lines: Sequence[bench.Line],
    folder: Path,
    sizes: Sequence[int] = (5000, 2000),
    repeats: int = 2,
    tell: bench.Tell = lambda *_: None,
) -> bench.TransferBench:
    work = bench.bench_transfers(lines, sizes, repeats, folder, tell)
    return asyncio.run(work)


class Odd(bench.LocalLine):
    """A line that fails at a size, or that can't remove anything."""

    def __init__(self, folder: Path, limit: int = 1 << 40, *, stays: bool = False):
        super().__init__(folder, link=False)
        self.facility = "odd"
        self._limit, self._stays = limit, stays
        self.asked: list[list[str]] = []

    async def open(self, watch: bench.Watch) -> PosixMover:
        limit, place = self._limit, Place(mailbox=self._folder, watch=watch)

        class Failing(PosixMover):
            async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
                if any(one.bytes > limit for one in files.values()):
                    raise TransferError("The line broke.", hint="Mend it.")
                watch(Progress(bytes=1000, total=2000))
                return await super().put(source, target, files)

        return Failing(PosixOptions(), place)

    async def remove(self, names: Sequence[str]) -> list[str]:
        self.asked.append(list(names))
        if self._stays:
            raise FacilityError("The site agent does not answer.")
        return await super().remove(names)


def test_every_size_is_measured_over_every_line(tmp_path: Path) -> None:
    lines = bench.local_lines(tmp_path / "mail")
    found = measured(lines, tmp_path)
    assert [(o.mover, o.bytes, o.direction, len(o.seconds)) for o in found.found] == [
        (mover, size, direction, 2)
        for mover in ("posix copy", "posix link")
        for size in (2000, 5000)
        for direction in ("put", "get")
    ]
    assert all(seconds > 0 for one in found.found for seconds in one.seconds)
    assert (found.failed, found.left) == ({}, {})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == []  # it is all removed again


def test_a_line_that_breaks_keeps_what_it_had_and_stops_nobody(tmp_path: Path) -> None:
    odd = Odd(tmp_path / "odd", limit=80_000)
    good, _ = bench.local_lines(tmp_path / "mail")
    found = measured([odd, good], tmp_path, sizes=(2000, 90_000, 95_000))
    sizes = [(one.facility, one.bytes) for one in found.found if one.direction == "put"]
    mine = "this machine"
    assert sizes == [("odd", 2000), (mine, 2000), (mine, 90_000), (mine, 95_000)]
    (name,) = found.failed
    assert (name, found.failed[name].message) == ("odd, posix copy", "The line broke.")


def test_what_can_not_be_removed_is_tried_again_and_told(tmp_path: Path) -> None:
    odd = Odd(tmp_path / "odd", stays=True)
    found = measured([odd], tmp_path, sizes=(2000,), repeats=2)
    assert [len(names) for names in odd.asked] == [1, 2, 3]  # the first to warm up
    places = found.left["odd, posix copy"]
    assert [Path(place).name for place in places] == odd.asked[-1]
    assert all((Path(place) / MANIFEST).is_file() for place in places)
    assert len(found.found) == 2


def test_progress_counts_bytes_over_all_lines(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    measured(
        [Odd(tmp_path / "odd")],
        tmp_path,
        sizes=(2000,),
        repeats=2,
        tell=lambda *one: told.append(one),
    )
    real = [(words, done) for words, done, of in told if of == 8000 and "2.0" in words]
    there, back = "odd, posix copy: 2.0 kB there", "odd, posix copy: 2.0 kB back"
    assert real == [
        (there, 0), (there, 1000), (back, 2000),
        (there, 4000), (there, 5000), (back, 6000),
    ]  # fmt: skip


def test_a_facility_is_measured_through_its_own_agent(tmp_path: Path) -> None:
    site = SITE.format(name="alpha")
    (tmp_path / "alpha.yaml").write_text(site)
    spec = federation_from_text(FEDERATION.format(root=tmp_path), name="f")
    assert [one.facility for one in bench.facility_lines(spec)] == ["alpha", "beta"]
    lines = bench.facility_lines(spec, ["alpha", "beta"])
    found = measured(lines, tmp_path, sizes=(2000,), repeats=1)
    assert [(one.facility, one.direction) for one in found.found] == [
        ("alpha", "put"),
        ("alpha", "get"),
    ]
    assert list(found.failed) == ["beta, posix"]
    assert "absent.yaml" in found.failed["beta, posix"].message
    assert found.left == {}
    (updates,) = tmp_path.rglob("bench/updates")
    assert list(updates.iterdir()) == []  # the agent has removed all of it


def test_a_bundle_is_what_its_manifest_promises(tmp_path: Path) -> None:
    bundle = Bundle.make(tmp_path / "files", 3_000_001)
    (name,) = bundle.files
    data = (bundle.folder / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert bundle.bytes == len(data) == 3_000_001
    assert bundle.files[name].sha256 == digest
    shown = json.loads((bundle.folder / MANIFEST).read_text())
    assert shown["files"][name] == {"bytes": 3_000_001, "sha256": digest}


def test_a_bundle_can_not_be_compressed_and_is_never_the_same(tmp_path: Path) -> None:
    bundle = Bundle.make(tmp_path / "files", 200_000)
    (name,) = bundle.files
    path, first = bundle.folder / name, bundle.files[name]
    assert len(zlib.compress(path.read_bytes())) > 199_000
    path.chmod(0o444)  # as a mover leaves what it has linked
    bundle.renew()
    again = bundle.files[name]
    assert again.bytes == first.bytes
    assert again.sha256 != first.sha256
    assert again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert remembered(path) == again


def test_large_bundles_are_divided_as_models_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansa.coordinator.bundle._SHARD", 1000)
    bundle = Bundle.make(tmp_path / "files", 2501)
    assert [one.bytes for one in bundle.files.values()] == [834, 834, 833]
