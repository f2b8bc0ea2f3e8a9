"""A version of one run as version 0 of another, without moving its bytes."""

from __future__ import annotations

from pathlib import Path

from hansa.core.errors import StoreError
from hansa.core.recipes import LINEAR, PLAIN
from hansa.store.atomic import link_file, new_directory
from hansa.store.manifest import read_version_manifest, write_manifest
from hansa.store.places import Places


def begin_from(root: Path, source: Path, version: int) -> str:
    """Give a run a version 0 that is a version of another run; harmless if it has one.

    Files are linked where the file system can, else copied. What the version was made
    of is left out, as this run has none of it.

    Args:
        root: Directory of the run that begins.
        source: Directory of the other run.
        version: Number of the version there.

    Returns:
        The sha256 of the model (`VersionManifest.sha256`), the same as there.

    Raises:
        StoreError: There is no such version, or another version 0 here.
        IntegrityError: A manifest is damaged.
        StorageFull: No space; nothing is left behind.
    """
    here, there = Places(root), Places(source)
    manifest = read_version_manifest(there.version(version))
    if here.version(0).is_dir():
        found = read_version_manifest(here.version(0)).sha256
        if found != manifest.sha256:
            raise StoreError(
                f"{here.version(0)} is another model than version {version} of "
                f"{source}.",
                hint=f"Remove {root} and try again.",
            )
        return found
    if there.master(version).is_dir() and not here.master(0).is_dir():
        _copy(there.master(version), here.master(0))
    _copy(there.version(version), here.version(0))
    return manifest.sha256


def _copy(source: Path, target: Path) -> None:
    manifest = read_version_manifest(source)
    first = manifest.model_copy(
        update={
            "version": 0,
            "terms": (),
            "reducer": LINEAR,
            "optimizer": PLAIN,
            "states": (),
        }
    )
    with new_directory(target) as aside:
        for name in manifest.files:
            link_file(source / name, aside / name)
        write_manifest(aside, first)
