import asyncio
import errno
import hashlib
import os
import shutil

import pytest

from hansa.core import files
from hansa.core.errors import StorageFull, TransferError
from hansa.core.files import FileRecord
from hansa.mover import landing
from hansa.mover.base import Damaged, Place
from hansa.mover.posix import PosixMover, PosixOptions

DATA = b"weights" * 1000
FILES = {
    "a.safetensors": FileRecord(
        bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()
    )
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(DATA)
    (folder / "manifest.json").write_text("{}")
    return folder


def put(tmp_path, source, **options):
    async def work():
        mover = PosixMover(PosixOptions(**options), Place(mailbox=tmp_path / "mail"))
        moved = await mover.put(source, "r/versions/0", FILES)
        await mover.close()
        return moved

    asyncio.run(work())
    return tmp_path / "mail/r/versions/0"


def same(a, b) -> bool:
    return a.stat().st_ino == b.stat().st_ino


def test_versions_are_linked_where_asked(tmp_path, source):
    target = put(tmp_path, source, link=True)
    assert same(target / "a.safetensors", source / "a.safetensors")
    assert not same(target / "manifest.json", source / "manifest.json")


def test_the_server_may_see_the_mailbox_elsewhere(tmp_path, source):
    put(tmp_path, source, path=tmp_path / "mount")
    assert (tmp_path / "mount/r/versions/0/a.safetensors").exists()
    assert not (tmp_path / "mail").exists()


def test_versions_are_copied(tmp_path, source):
    target = put(tmp_path, source)
    assert not same(target / "a.safetensors", source / "a.safetensors")


def test_updates_are_copied_as_their_owner_might_write(tmp_path, source):
    async def work():
        mover = PosixMover(PosixOptions(), Place(mailbox=tmp_path))
        await mover.get("server", tmp_path / "store/update", FILES)
        await mover.close()

    asyncio.run(work())
    copy = tmp_path / "store/update/a.safetensors"
    with (source / "a.safetensors").open("r+b") as file:
        file.write(b"X")
    assert copy.read_bytes() == DATA


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_do_not_work_it_copies(tmp_path, source, monkeypatch, number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    target = put(tmp_path, source, link=True)
    assert (target / "a.safetensors").read_bytes() == DATA
    assert not same(target / "a.safetensors", source / "a.safetensors")


def damage(target):
    (target / "a.safetensors").chmod(0o644)
    (target / "a.safetensors").write_bytes(b"X" + DATA[1:])


def remove(target):
    (target / "a.safetensors").unlink()


@pytest.mark.parametrize("spoil", [damage, remove])
def test_a_damaged_target_is_mended(tmp_path, source, spoil):
    target = put(tmp_path, source)
    whole = target.stat().st_ino
    assert put(tmp_path, source).stat().st_ino == whole
    for times in (1, 2):
        spoil(target)
        put(tmp_path, source)
        assert (target / "a.safetensors").read_bytes() == DATA
        hidden = [path for path in target.parent.iterdir() if path != target]
        assert len(hidden) == times
        assert all(path.name.startswith(".damaged-0.") for path in hidden)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path, source, monkeypatch, number):
    def full(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageFull, match="No space is left"):
        put(tmp_path, source, link=False)
    assert list((tmp_path / "mail/r/versions").iterdir()) == []


def test_a_mailbox_that_can_not_be_made_is_lasting(tmp_path, source):
    (tmp_path / "mail").write_text("a file")
    with pytest.raises(TransferError) as caught:
        put(tmp_path, source)
    assert not caught.value.transient


def test_the_loop_goes_on_while_files_move(tmp_path, source, monkeypatch):
    """A slow file system must not stop the server's other work."""

    async def work():
        loop, gate = asyncio.get_running_loop(), asyncio.Event()
        copyfile = shutil.copyfile

        def slow(*arguments, **options):
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20)
            return copyfile(*arguments, **options)

        monkeypatch.setattr(shutil, "copyfile", slow)
        mover = PosixMover(PosixOptions(link=False), Place(mailbox=tmp_path / "mail"))
        moving = asyncio.create_task(mover.put(source, "r/versions/0", FILES))
        await asyncio.sleep(0)
        gate.set()  # reached only if the loop is free
        moved = await moving
        await mover.close()
        return moved

    assert asyncio.run(work()).bytes == len(DATA) + 2


def test_a_file_is_on_the_disk_before_it_appears(tmp_path, source, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle):
        info = os.fstat(handle)
        synced.append((info.st_ino, (tmp_path / "mail/r/versions/0").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    target = put(tmp_path, source)
    there = (target / "a.safetensors").stat().st_ino
    assert (there, False) in synced


def test_a_disk_that_fills_up_while_it_is_hashed_is_told(tmp_path, source, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        put(tmp_path, source)
    assert list((tmp_path / "mail/r/versions").iterdir()) == []


def get(tmp_path, files):
    async def work():
        mover = PosixMover(PosixOptions(), Place(mailbox=tmp_path))
        try:
            await mover.get("server", tmp_path / "store/update", files)
        finally:
            await mover.close()

    asyncio.run(work())


@pytest.mark.parametrize("name", ["manifest.json", "a.safetensors"])
def test_a_pipe_of_a_facility_does_not_hang_the_server(tmp_path, source, name):
    (source / name).unlink()
    os.mkfifo(source / name)
    with pytest.raises(TransferError, match=f"{name} is no regular file"):
        get(tmp_path, FILES)
    assert list((tmp_path / "store").glob("*")) == []


def test_a_file_larger_than_promised_is_not_copied(tmp_path, source, monkeypatch):
    # A sparse file costs the facility nothing, and could fill the server's disk.
    os.truncate(source / "a.safetensors", 1 << 40)
    monkeypatch.setattr(shutil, "copyfile", lambda *_, **__: pytest.fail("copied"))
    with pytest.raises(Damaged, match=f"{1 << 40} bytes of 7000"):
        get(tmp_path, FILES)


def test_a_manifest_of_any_size_is_not_read(tmp_path, source):
    os.truncate(source / "manifest.json", 1 << 40)
    with pytest.raises(TransferError, match="too large for a manifest"):
        get(tmp_path, FILES)


def test_a_version_that_is_linked_often_is_hashed_once(tmp_path, source, monkeypatch):
    monkeypatch.setattr(files, "_known", {})
    hashed, real = [], landing.verify

    def verify(path, record, origin):
        hashed.append(origin)
        real(path, record, origin)

    monkeypatch.setattr(landing, "verify", verify)
    for place in ("a", "b", "c"):
        put(tmp_path / place, source, link=True)
    assert hashed == [source / "a.safetensors"]
    for place in ("d", "e"):
        put(tmp_path / place, source)
    assert len(hashed) == 3


def test_a_linked_file_that_was_changed_is_hashed_again(tmp_path, source):
    put(tmp_path / "a", source, link=True)
    file = source / "a.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"W" + DATA[1:])
    with pytest.raises(TransferError, match="not what its manifest promises"):
        put(tmp_path / "b", source, link=True)
