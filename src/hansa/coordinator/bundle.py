"""Files of random bytes with a manifest: what a bench moves in place of a model."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final, Self

import numpy as np

from hansa.core.files import FileRecord, remember, total_bytes
from hansa.mover.base import MANIFEST
from hansa.store.atomic import full_disk, sync_file, write_json

_SHARD: Final = 5_000_000_000  # as the store writes large models
_WORDS: Final = 1 << 17  # of 8 bytes, made at once
_TAG: Final = 8


class Bundle:
    """Files that can't be compressed, and that nobody has seen before.

    Attributes:
        folder: Where they lie.
        files: What the manifest promises; changed by `renew`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileRecord] = {}
        self._begun: dict[str, hashlib._Hash] = {}

    @property
    def bytes(self) -> int:
        """Size of all files together, without the manifest."""
        return total_bytes(self.files)

    @classmethod
    def make(cls, folder: Path, size: int) -> Self:
        """Write files of so many bytes together.

        Raises:
            StorageFull: There is no space left.
            OSError: `folder` can't be made.
        """
        made, random = cls(folder), np.random.SFC64()
        shards = -(-size // _SHARD)
        with full_disk(folder):
            folder.mkdir()
            for number in range(shards):
                name = f"model-{number + 1:05d}.safetensors"
                made._write(name, size // shards + (number < size % shards), random)
        made.renew()
        return made

    def renew(self) -> None:
        """Change the ends of all files, so that nobody has seen them before."""
        for name, begun in self._begun.items():
            path, whole, tag = self.folder / name, begun.copy(), os.urandom(_TAG)
            path.chmod(0o644)  # a mover that has linked it has made it read-only
            with path.open("r+b") as file:
                size = file.seek(-_TAG, os.SEEK_END) + file.write(tag)
            sync_file(path)
            whole.update(tag)
            self.files[name] = FileRecord(bytes=size, sha256=whole.hexdigest())
            remember(path, self.files[name])  # as the store does with a new version
        records = {name: asdict(record) for name, record in self.files.items()}
        write_json(self.folder / MANIFEST, {"schema": 1, "files": records})

    def _write(self, name: str, size: int, random: np.random.SFC64) -> None:
        begun, left = hashlib.sha256(), size - _TAG
        with (self.folder / name).open("xb") as file:
            while left:
                block = random.random_raw(_WORDS).tobytes()[:left]
                file.write(block)
                begun.update(block)
                left -= len(block)
            file.write(bytes(_TAG))
        self._begun[name] = begun
