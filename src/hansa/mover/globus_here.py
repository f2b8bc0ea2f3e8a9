"""What the mover over Globus Transfer does with files of this machine."""

from __future__ import annotations

import shutil
import stat
from contextlib import suppress
from pathlib import Path

from hansa.core.files import FileRecords, remember, remembered
from hansa.mover import landing
from hansa.mover.base import MANIFEST, Damaged

_WRITABLE = 0o644


def checked(source: Path, files: FileRecords) -> bytes:
    """Return the manifest of a directory whose files are what it promises.

    One damaged file would fail the task of all who share it. What this process has
    hashed is not hashed again.

    Raises:
        TransferError: A file is missing, no regular one, or differs.
    """
    with landing.readable_errors(source, "the facility"):
        manifest = landing.read_manifest(source)
        for name, record in files.items():
            path = source / name
            landing.regular(path)
            if remembered(path) != record:
                landing.verify(path, record, path)
                remember(path, record)
    return manifest


def waiting(target: Path) -> Path:
    """Return where files wait for the others before `target` gets its name.

    It is beside the folder of `target`, not in it: the store sweeps hidden entries out
    of its folders when it is opened, while the service may still be writing.
    """
    folder = target.parent
    return folder.with_name(f".{folder.name}.arriving") / target.name


def prepare(origin: object, folder: Path) -> None:
    """Make a folder to receive into; what a try before this one left is used again."""
    with landing.readable_errors(origin, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():
            mode = entry.lstat().st_mode
            if stat.S_ISREG(mode):
                entry.chmod(_WRITABLE)
            elif stat.S_ISDIR(mode):
                shutil.rmtree(entry)
            else:
                entry.unlink()


def has_arrived(origin: str, target: Path, manifest: bytes, files: FileRecords) -> bool:
    """Tell whether all is in `target` already; see `landing.arrived`."""
    with landing.readable_errors(origin, target):
        return landing.arrived(target, manifest, files)


def accept(origin: str, aside: Path, target: Path, files: FileRecords) -> None:
    """Verify what came and give it its place.

    What is damaged stays aside: the next task sends just those files again.

    Raises:
        Damaged: A file is missing or differs from its record.
        TransferError: Another directory has the place already.
    """
    with landing.readable_errors(origin, target):
        for entry in aside.iterdir():
            if entry.name not in files and entry.name != MANIFEST:
                discard(entry)
        for name in (*files, MANIFEST):
            _present(aside / name, f"{origin}/{name}")
        for name, record in files.items():
            with landing.syncing(aside / name):
                landing.verify(aside / name, record, f"{origin}/{name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        landing.settle(aside, target, files, landing.read_manifest(aside))
    _remove_empty(aside.parent)


def discard(path: Path) -> None:
    """Remove a file or a folder, and the waiting room if nothing is left in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.parent.name.endswith(".arriving"):
        _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # others wait in it
        folder.rmdir()


def _present(path: Path, origin: str) -> None:
    if not path.is_file() or path.is_symlink():
        raise Damaged(
            f"{origin} is not what its manifest promises: it is missing, or no regular "
            "file.",
            hint="It was damaged or is still being written.",
        )
