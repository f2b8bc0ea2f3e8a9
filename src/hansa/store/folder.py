"""All tensors of a directory by name, whichever file each one is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hansa.core.errors import IntegrityError, StoreError
from hansa.core.words import nearest
from hansa.store.dtypes import Array
from hansa.store.manifest import TENSOR_SUFFIX
from hansa.store.tensorfile import TensorFile, TensorInfo

_OPEN_FILES: Final = 2
"""Files kept open per folder, so that hundreds of updates stay below the limit."""


def reader(directory: Path) -> TensorFolder:
    """Open a version, an update or any folder of safetensors files for reading.

    Raises:
        StoreError: There is no such directory.
        IntegrityError: A file is damaged, or two files hold the same tensor.
    """
    return TensorFolder(directory)


class TensorFolder:
    """The tensors of a directory; a context manager. Made by `reader`.

    Attributes:
        directory: Where the files are.
        names: The names of all tensors, sorted.
        layout: By file name (sorted), its tensors in the order of their bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, TensorFile] = {}
        self._file: dict[str, str] = {}
        layout: dict[str, Sequence[TensorInfo]] = {}
        for file in _tensor_files(directory):
            with TensorFile(directory / file) as opened:
                layout[file] = tuple(opened.tensors.values())
            self._note(file, layout[file])
        self.layout: Mapping[str, Sequence[TensorInfo]] = layout
        self._info = {info.name: info for infos in layout.values() for info in infos}
        self.names: tuple[str, ...] = tuple(sorted(self._file))

    def _note(self, file: str, infos: Sequence[TensorInfo]) -> None:
        for info in infos:
            if info.name in self._file:
                raise IntegrityError(
                    f"Tensor {info.name!r} is in {self._file[info.name]} and in "
                    f"{file} of {self.directory}."
                )
            self._file[info.name] = file

    def info(self, name: str) -> TensorInfo:
        """Return shape, dtype and place of a tensor.

        Raises:
            IntegrityError: There is no such tensor.
        """
        found = self._info.get(name)
        if found is not None:
            return found
        guess = nearest(name, self.names)
        raise IntegrityError(
            f"{self.directory} has no tensor {name!r}.",
            hint=f"The nearest name there is {guess!r}." if guess else None,
        )

    def file(self, name: str) -> str:
        """Return the name of the file that holds a tensor; raises as `info`."""
        return self._file[self.info(name).name]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the floating tensors, by name, sorted.

        These are the tensors that an update has deltas of.
        """
        infos = (self._info[name] for name in self.names)
        return {info.name: info.shape for info in infos if info.dtype.floating}

    def read(self, name: str) -> Array:
        """Return one whole tensor in its stored dtype; raises as `info`."""
        return self._opened(name).read(name)

    def read_block(self, name: str, start: int, raw: Array) -> Array:
        """Read a tensor's numbers from `start` on; see `TensorFile.read_block`."""
        return self._opened(name).read_block(self.info(name), start, raw)

    def _opened(self, name: str) -> TensorFile:
        file = self.file(name)
        found = self._open.pop(file, None)
        if found is None:
            found = TensorFile(self.directory / file)
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
        self._open[file] = found
        return found

    def close(self) -> None:
        """Close all files; the folder can still be used afterwards."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _tensor_files(directory: Path) -> list[str]:
    if not directory.is_dir():
        raise StoreError(f"There is no directory {directory}.")
    return sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.name.endswith(TENSOR_SUFFIX) and not entry.name.startswith(".")
    )
