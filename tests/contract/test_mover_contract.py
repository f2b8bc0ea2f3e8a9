"""What every mover must do. A new one is one more entry of MOVERS."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import globus
import pytest
import s3_service
import sshd
from pydantic import BaseModel, ValidationError

from hansa.core import plugins
from hansa.core.errors import TransferError
from hansa.core.files import FileRecord
from hansa.mover import globus_queue, globus_service
from hansa.mover.base import Place

MOVERS = {
    "globus": ("globus", lambda mail, lines: lines.globus(mail)),
    "posix-link": ("posix", lambda mail, lines: {"link": True}),
    "posix-copy": ("posix", lambda mail, lines: {"path": mail, "link": False}),
    "rsync": ("rsync", lambda mail, lines: lines.ssh()),
    "s3": ("s3", lambda mail, lines: lines.s3()),
}
"""Plug-in, and its options for a facility's mailbox on this machine; see `Lines`."""

PLACE = "smol/versions/3"


def record(data: bytes) -> FileRecord:
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def make(folder: Path, manifest: object = "v3", **files: bytes):
    folder.mkdir(parents=True)
    records = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        records[name] = record(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return records


def visible(folder: Path) -> list[str]:
    """Return the names in a folder that may not be there."""
    if not folder.exists():
        return []
    return [entry.name for entry in folder.iterdir() if entry.name[0] != "."]


def content(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


class Bench:
    """A mover between `here` (the server) and `mail` (the facility)."""

    def __init__(self, name: str, root: Path, lines) -> None:
        self.plugin, options = MOVERS[name]
        self.here, self.mail = root / "server", root / "mail"
        self.kind = plugins.find(plugins.MOVERS, self.plugin)
        self.options = options(self.mail, lines)
        self.ask = s3_service.asking(root, self.mail, *lines.hosts)

    def mover(self):
        options = self.kind.Options.model_validate(self.options)
        return self.kind(options, Place(mailbox=self.mail, ask=self.ask))

    def do(self, verb, *arguments):
        async def work():
            mover = self.mover()
            try:
                return await getattr(mover, verb)(*arguments)
            finally:
                await mover.close()

        return asyncio.run(work())


class Lines:
    """Real services that movers need, started when they are first needed."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self._sshd = self._globus = self._s3 = None

    def ssh(self) -> dict:
        if self._sshd is None:
            sshd.need("sshd", "ssh", "rsync")
            self._sshd = sshd.Sshd.make(self.root / "sshd")
            self._sshd.start()
        return self._sshd.options

    def globus(self, mail: Path) -> dict:
        if self._globus is None:
            self._globus = globus.sandbox(self.root / "globus", compute=False).start()
            for name, value in self._globus.env.items():
                self.patch.setenv(name, value)
            self.patch.setattr(globus_queue, "FIRST_S", 0.03)
            self.patch.setattr(globus_service.PACE, "most", 10_000)
        server = self._globus.add_collection(mail.parent)
        return {
            "collection": self._globus.add_collection(mail),
            "path": "/",
            "here": {"collection": server, "root": mail.parent, "path": "/"},
        }

    def s3(self) -> dict:
        if self._s3 is None:
            self._s3 = s3_service.Service()
            self._s3.start()
            for name, value in s3_service.KEYS.items():
                self.patch.setenv(name, value)
        self._s3.empty()
        return self._s3.options

    @property
    def hosts(self) -> list[str]:
        return [] if self._s3 is None else [self._s3.host]

    def stop(self) -> None:
        for one in (self._sshd, self._globus, self._s3):
            if one is not None:
                one.stop()


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = Lines(tmp_path_factory.mktemp("lines"), patch)
        yield made
        made.stop()


@pytest.fixture(params=sorted(MOVERS))
def bench(request, tmp_path, lines):
    return Bench(request.param, tmp_path, lines)


FILES = {"model-00001.safetensors": b"\x00weights" * 999, "config.json": b"{}"}


@pytest.fixture(params=["put", "get"])
def move(request, bench):
    """Both directions as one: `source` and `target` are real folders."""

    class Move:
        if request.param == "put":
            source, target = bench.here / "versions/3", bench.mail / PLACE
        else:
            source, target = bench.mail / PLACE, bench.here / "versions/3"

        def __call__(self, files):
            if request.param == "put":
                return bench.do("put", self.source, PLACE, files)
            return bench.do("get", PLACE, self.target, files)

    return Move()


def test_options_are_a_strict_model(bench):
    assert issubclass(bench.kind.Options, BaseModel)
    with pytest.raises(ValidationError):
        bench.kind.Options.model_validate({**bench.options, "no_such_option": 1})


def test_everything_arrives_with_its_manifest(move):
    files = make(move.source, **FILES)
    moved = move(files)
    assert content(move.target) == content(move.source)
    size = sum(len(data) for data in content(move.source).values())
    assert moved.bytes == size
    assert moved.seconds >= 0
    assert [entry.name for entry in move.target.parent.iterdir()] == ["3"]


def test_moving_twice_moves_once(move):
    files = make(move.source, **FILES)
    move(files)
    before = (move.target / "config.json").stat().st_ino
    assert move(files).bytes == 0
    assert (move.target / "config.json").stat().st_ino == before


def test_a_manifest_alone_can_move(move):
    make(move.source)
    assert move({}).bytes > 0
    assert list(content(move.target)) == ["manifest.json"]


def test_what_arrived_is_read_only(move, bench):
    if bench.plugin == "globus" and move.target.is_relative_to(bench.mail):
        pytest.skip(
            "Globus Transfer sets no modes; jobs compare what they read by sha256"
        )
    move(make(move.source, **FILES))
    for name in FILES:
        assert (move.target / name).stat().st_mode & 0o222 == 0


def test_another_manifest_there_is_refused(move):
    files = make(move.source, **FILES)
    make(move.target, manifest="an older run")
    with pytest.raises(TransferError, match="with another manifest") as caught:
        move(files)
    assert not caught.value.transient
    assert list(content(move.target)) == ["manifest.json"]


@pytest.mark.parametrize("damage", [b"", b"short", b"\x00weightz" * 999])
def test_damage_is_refused_and_nothing_is_visible(move, damage):
    files = make(move.source, **FILES)
    (move.source / "model-00001.safetensors").write_bytes(damage)
    with pytest.raises(TransferError, match="not what its manifest promises") as caught:
        move(files)
    assert caught.value.transient
    assert not move.target.exists()
    assert visible(move.target.parent) == []
    (move.source / "model-00001.safetensors").write_bytes(
        FILES["model-00001.safetensors"]
    )
    assert move(files).bytes > 0  # and it is mended by trying again


def test_a_missing_file_is_refused(move):
    files = make(move.source, **FILES)
    with pytest.raises(TransferError, match="more"):
        move({**files, "more.safetensors": record(b"x")})
    assert not move.target.exists()


def test_a_missing_source_is_refused(move):
    with pytest.raises(TransferError):
        move({})
    assert not move.target.exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "", ".", "..", ".x", "manifest.json", "a\0"]
)
def test_bad_file_names_are_refused(move, name):
    make(move.source, **FILES)
    with pytest.raises(TransferError) as caught:
        move({name: record(b"")})
    assert not caught.value.transient
    assert not move.target.exists()


@pytest.mark.parametrize("place", ["../x", "/x", "", "smol/../../x", ".queue/x", "a\0"])
def test_bad_places_are_refused(bench, place):
    files = make(bench.here / "versions/3", **FILES)
    for verb, arguments in (
        ("put", (bench.here / "versions/3", place, files)),
        ("get", (place, bench.here / "x", files)),
    ):
        with pytest.raises(TransferError) as caught:
            bench.do(verb, *arguments)
        assert not caught.value.transient


def test_links_are_not_followed(move, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"TOP SECRET")
    make(move.source)
    (move.source / "a").symlink_to(secret)
    with pytest.raises(TransferError):
        move({"a": record(b"TOP SECRET")})
    (move.source / "a").unlink()
    os.mkfifo(move.source / "a")
    with pytest.raises(TransferError):
        move({"a": record(b"")})
    (move.source / "manifest.json").unlink()
    (move.source / "manifest.json").symlink_to(secret)
    with pytest.raises(TransferError):
        move({})
    assert not move.target.exists()


def test_many_at_once_leave_one(bench):
    files = make(bench.here / "versions/3", **FILES)

    async def work():
        movers = [bench.mover() for _ in range(6)]
        source = bench.here / "versions/3"
        moved = await asyncio.gather(
            *(mover.put(source, PLACE, files) for mover in movers)
        )
        for mover in movers:
            await mover.close()
        return moved

    moved = asyncio.run(work())
    assert any(one.bytes for one in moved)
    assert content(bench.mail / PLACE) == content(bench.here / "versions/3")
    assert [entry.name for entry in (bench.mail / PLACE).parent.iterdir()] == ["3"]


def test_a_state_lies_one_folder_deeper(bench):
    place = "smol/states/correction-a/3"
    source = bench.here / "states/correction-a/3"
    files = make(source, **FILES)
    first, again = (bench.do("put", source, place, files) for _ in range(2))
    assert content(bench.mail / place) == content(source)
    assert (first.bytes > 0, again.bytes) == (True, 0)
    assert [entry.name for entry in (bench.mail / place).parent.iterdir()] == ["3"]
