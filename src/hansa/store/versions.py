"""The store on the server: versions, masters and updates of one run.

::

    <root>/versions/<n>/         what facilities get; its existence means it is whole
    <root>/master/<n>/           the same in fp32, when the model's dtype is another
    <root>/updates/<assignment>/ what facilities delivered, verified before use
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from hansa.core.commands import Term
from hansa.core.errors import IntegrityError, StoreError
from hansa.core.files import FileRecord
from hansa.core.ids import is_assignment
from hansa.store.atomic import remove_directory
from hansa.store.dtypes import stored
from hansa.store.folder import reader
from hansa.store.manifest import (
    NAME,
    TENSOR_SUFFIX,
    VersionManifest,
    read_version_manifest,
)
from hansa.store.publish import INDEX, Layout, index_json, write_version
from hansa.store.sums import WeightedSum
from hansa.store.tensorfile import hash_file
from hansa.store.verify import verify_files

_log = logging.getLogger(__name__)

ASSET_SUFFIXES: Final = (".json", ".txt", ".model", ".jinja", ".frozen")
"""What may travel beside tensors: text, tokenizer tables and weights that nobody
trains (``base.frozen``), never code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A version that is on disk.

    Attributes:
        version: Its number.
        sha256: Hash of the model (see `VersionManifest.sha256`).
        bytes: Size of all its files.
        seconds: Time spent; 0 if it was there already.
    """

    version: int
    sha256: str
    bytes: int
    seconds: float


class Store:
    """All versions of one run. Only one process writes; many may read.

    Args:
        root: The run's directory.
        dtype: Format that versions are published in, as ``bfloat16``.
        keep: Newest versions that `collect_garbage` keeps by default.

    Raises:
        StoreError: The dtype can't be stored.
    """

    def __init__(self, root: Path, dtype: str, keep: int = 2) -> None:
        self.root = root
        self.keep = keep
        self._dtype = stored(dtype)
        self._busy = threading.Lock()
        # Movers write into updates/ at any time, so later ones may be under way.
        self._remains = _hidden(root / "updates")

    @property
    def dtype(self) -> str:
        """Format that versions are published in."""
        return self._dtype.name

    def version_dir(self, version: int) -> Path:
        """Return where a version is, or will be."""
        return self.root / "versions" / str(version)

    def master_dir(self, version: int) -> Path:
        """Return where the fp32 master of a version is, if there is one."""
        return self.root / "master" / str(version)

    def update_dir(self, assignment: str) -> Path:
        """Return where an assignment's update is, or will be.

        Raises:
            StoreError: The id has not the form of an assignment's.
        """
        if not is_assignment(assignment):
            raise StoreError(f"{assignment!r} is no assignment id.")
        return self.root / "updates" / assignment

    def manifest(self, version: int) -> VersionManifest:
        """Return what a version says of itself.

        Raises:
            StoreError: There is no such version.
            IntegrityError: Its manifest is damaged, or that of another version.
        """
        manifest = read_version_manifest(self.version_dir(version))
        if manifest.version != version:
            raise IntegrityError(
                f"{self.version_dir(version) / NAME} is of version {manifest.version}."
            )
        return manifest

    def versions(self) -> list[int]:
        """Return the numbers of all versions on disk, sorted."""
        return _numbers(self.root / "versions")

    def newest(self) -> int | None:
        """Return the number of the newest version; None before there is one."""
        return max(self.versions(), default=None)

    def import_initial(self, folder: Path) -> Published:
        """Make version 0 from a folder of safetensors files and assets.

        Tensor files are renamed to model-00001-of-0000N.safetensors in their sorted
        order; other files than assets (`ASSET_SUFFIXES`) are left out. If version 0
        exists it is returned as it is.

        Raises:
            StoreError: There is no tensor in the folder.
            IntegrityError: A file is damaged.
            UpdateRejected: A number is not finite.
            StorageFull: No space; nothing is left behind.
        """
        with self._busy:
            if self.version_dir(0).exists():
                return _published(self.manifest(0), 0.0)
            began = time.perf_counter()
            with reader(folder) as source, TemporaryDirectory() as spare:
                if not source.names:
                    raise StoreError(f"{folder} has no tensor in *.safetensors files.")
                layout = _renamed(source.layout)
                index = Path(spare) / INDEX
                index.write_text(index_json(layout, self._dtype), encoding="utf-8")
                paths = [*_assets(folder), index]
                values = WeightedSum([(1.0, source)], source)
                assets = {path: hash_file(path) for path in paths}
                manifest = self._write(0, layout, values, assets, ())
            return _published(manifest, time.perf_counter() - began)

    def aggregate(self, version: int, terms: Sequence[Term]) -> Published:
        """Publish a version: the sum of coefficient times reference, in term order.

        Layout, integer tensors and assets come from the first version among the
        terms. Doing it twice does it once.

        Args:
            version: Number of the new version.
            terms: References to versions and updates, with coefficients.

        Raises:
            StoreError: The version exists with other terms, a reference is unknown,
                or no term is a version.
            IntegrityError: Files are damaged or don't fit.
            UpdateRejected: A number of the result is not finite.
            StorageFull: No space; nothing is left behind.
        """
        with self._busy:
            if self.version_dir(version).exists():
                return self._same(version, terms)
            began = time.perf_counter()
            base = _base(version, terms)
            old = self.manifest(base)
            assets = {
                self.version_dir(base) / name: old.files[name] for name in old.assets
            }
            with ExitStack() as stack:
                folders = [
                    stack.enter_context(reader(self.source_dir(term.ref)))
                    for term in terms
                ]
                first = stack.enter_context(reader(self.version_dir(base)))
                factors = [term.coefficient for term in terms]
                values = WeightedSum(list(zip(factors, folders, strict=True)), first)
                manifest = self._write(version, first.layout, values, assets, terms)
            return _published(manifest, time.perf_counter() - began)

    def _write(
        self,
        version: int,
        layout: Layout,
        values: WeightedSum,
        assets: Mapping[Path, FileRecord],
        terms: Sequence[Term],
    ) -> VersionManifest:
        master = None
        if self._dtype.name != "float32":
            master = self.master_dir(version)
            if master.exists():  # of an attempt that ended before it was published
                remove_directory(master)
        return write_version(
            version=version,
            published=self.version_dir(version),
            master=master,
            dtype=self._dtype,
            layout=layout,
            values=values,
            assets=assets,
            terms=terms,
        )

    def _same(self, version: int, terms: Sequence[Term]) -> Published:
        manifest = self.manifest(version)
        if manifest.terms != tuple(terms):
            raise StoreError(
                f"Version {version} exists and was made from other terms: "
                f"{manifest.terms}, not {tuple(terms)}.",
                hint="Two plans share one run directory; give one another run id.",
            )
        return _published(manifest, 0.0)

    def source_dir(self, ref: str) -> Path:
        """Return the directory that a term is read from: a master, if there is one.

        Raises:
            StoreError: The reference is unknown.
        """
        path = self._plain_dir(ref)
        if ref.startswith("version/"):
            master = self.master_dir(_version_of(ref))
            path = master if master.is_dir() else path
        if not path.is_dir():
            raise StoreError(f"The term {ref} is not in the store {self.root}.")
        return path

    def _plain_dir(self, ref: str) -> Path:
        kind, _, name = ref.partition("/")
        if kind == "update":
            return self.update_dir(name)
        return self.version_dir(_version_of(ref))

    def verify_version(self, version: int) -> VersionManifest:
        """Read a version, and its master, and compare all bytes with the manifests.

        Raises:
            StoreError: There is no such version.
            IntegrityError: A file is missing, too many or has other bytes.
        """
        manifest = self.manifest(version)
        verify_files(self.version_dir(version), manifest.files)
        if self.master_dir(version).is_dir():
            master = read_version_manifest(self.master_dir(version))
            verify_files(self.master_dir(version), master.files)
        return manifest

    def collect_garbage(
        self, keep_versions: int | None = None, needed: Collection[int] = ()
    ) -> list[Path]:
        """Remove what no later sum will read, and what crashes left half-written.

        Kept are version 0 (what the run began from), the newest `keep_versions`, those
        in `needed`, and the updates that these were made of. Updates that are in no
        sum yet are kept too. Half-written are the hidden entries of versions/ and
        master/, and those of updates/ that were there when this store was opened:
        transfers that an earlier process did not end.

        Args:
            keep_versions: At least 1; None takes `keep`.
            needed: More versions to keep, as those that running jobs train from.

        Returns:
            What was removed.
        """
        with self._busy:
            present = self.versions()
            kept = {*present[-max(1, keep_versions or self.keep) :], *needed}
            gone = [number for number in present if number not in kept]
            updates = self._refs(gone) - self._refs(kept.intersection(present))
            doomed = [
                *sorted(self._plain_dir(ref) for ref in updates),
                *(self.version_dir(number) for number in gone if number),
                *(
                    self.master_dir(number)
                    for number in _numbers(self.root / "master")
                    if number not in kept
                ),
            ]
            removed = [path for path in doomed if path.is_dir()]
            for path in removed:
                remove_directory(path)
            return removed + self._sweep()

    def _refs(self, versions: Iterable[int]) -> set[str]:
        """Return the updates that these versions were made of."""
        return {
            term.ref
            for version in versions
            for term in self.manifest(version).terms
            if term.ref.startswith("update/")
        }

    def _sweep(self) -> list[Path]:
        """Remove the hidden remains of crashes.

        Nobody writes versions and masters while `_busy`.
        """
        remains = [
            *_hidden(self.root / "versions"),
            *_hidden(self.root / "master"),
            *(path for path in self._remains if os.path.lexists(path)),
        ]
        for path in remains:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return remains


def _base(version: int, terms: Sequence[Term]) -> int:
    """Return the first version among the terms."""
    for term in terms:
        if term.ref.startswith("version/"):
            return _version_of(term.ref)
    raise StoreError(f"No term of version {version} is a version; updates are deltas.")


def _version_of(ref: str) -> int:
    match = re.fullmatch(r"version/([0-9]{1,9})", ref)
    if match is None:
        raise StoreError(
            f"{ref!r} is no reference.", hint="Write version/N or update/ASSIGNMENT."
        )
    return int(match[1])


def _published(manifest: VersionManifest, seconds: float) -> Published:
    return Published(
        version=manifest.version,
        sha256=manifest.sha256,
        bytes=manifest.bytes,
        seconds=seconds,
    )


def _renamed(layout: Layout) -> Layout:
    total = len(layout)
    return {
        f"model-{number:05d}-of-{total:05d}.safetensors": infos
        for number, infos in enumerate(layout.values(), start=1)
    }


def _assets(folder: Path) -> list[Path]:
    """Return the files to carry over; an index is made anew, as files are renamed."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in {NAME, INDEX} or path.name.endswith(TENSOR_SUFFIX):
            continue
        if path.suffix in ASSET_SUFFIXES and path.is_file() and path.name[0] != ".":
            found.append(path)
        else:
            _log.info("%s is no asset; left out of version 0.", path)
    return found


def _hidden(directory: Path) -> list[Path]:
    return sorted(directory.glob(".*")) if directory.is_dir() else []


def _numbers(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir())
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{1,9}", name))
