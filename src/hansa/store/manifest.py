"""What lies beside the tensors: `manifest.json` of a version and of an update.

The text depends on the content only (no times, sorted keys), so the same version
has the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

import hansa
from hansa.core.commands import StateSum, Term
from hansa.core.errors import IntegrityError, StoreError, UpdateRejected
from hansa.core.files import FileRecord, FileRecords, total_bytes
from hansa.core.recipes import LINEAR, PLAIN, Optimizer, Reducer
from hansa.store.atomic import write_json
from hansa.store.dtypes import BY_NAME

NAME: Final = "manifest.json"
SCHEMA: Final = 1
TENSOR_SUFFIX: Final = ".safetensors"
PACKED_SUFFIX: Final = ".zst"


LONGEST: Final = 200
"""Characters of a file's name, or of another word that comes from a facility."""


def _word(text: str) -> str:
    if len(text) > LONGEST or not text.isprintable():
        raise ValueError(f"{text[:LONGEST]!a} is too long, or can't be printed")
    return text


def _plain(name: str) -> str:
    _word(name)
    if not name or name.startswith(".") or name == NAME or {*name} & {*"/\\"}:
        raise ValueError(f"{name!r} is no plain file name")
    return name


def _possible(record: FileRecord) -> FileRecord:
    if record.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", record.sha256):
        raise ValueError("no file has that size, or that sha256")
    return record


Word = Annotated[str, AfterValidator(_word)]
FileName = Annotated[str, AfterValidator(_plain)]
Record = Annotated[FileRecord, AfterValidator(_possible)]
# All of these are far from where sums and quotients of them overflow.
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, allow_inf_nan=False
    )


class TensorEntry(_Strict):
    """File, shape and dtype (torch's name) of one tensor."""

    file: FileName
    shape: tuple[Count, ...]
    dtype: str


class _Manifest(_Strict):
    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    tensors: dict[str, TensorEntry] = {}
    files: dict[FileName, Record] = {}
    hansa: str = hansa.__version__

    @model_validator(mode="after")
    def _files_are_listed(self) -> Self:
        listed = self.tensor_files
        for name, entry in self.tensors.items():
            if entry.file not in listed:
                raise ValueError(f"tensor {name!r} is in {entry.file}, not in `files`")
        return self

    @property
    def tensor_files(self) -> FileRecords:
        """The files that tensors are read from, with others beside them."""
        return self.files

    @property
    def bytes(self) -> int:
        """Size of all files together (without the manifest itself)."""
        return total_bytes(self.files)


class VersionManifest(_Manifest):
    """A global version: its tensors, files, assets, and the sum that made it.

    Attributes:
        fixed: Names of floating tensors that nobody trains: updates leave them out.
        terms: What it is made of; `reducer`, `optimizer` and `states` say how.
    """

    kind: Literal["version"] = "version"
    version: Count
    dtype: str
    assets: tuple[FileName, ...] = ()
    fixed: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    reducer: Reducer = Field(LINEAR, discriminator="name")
    optimizer: Optimizer = Field(PLAIN, discriminator="name")
    states: tuple[StateSum, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the model: over the sorted hashes and names of its tensor files."""
        lines = sorted(
            f"{record.sha256}  {name}\n"
            for name, record in self.files.items()
            if name.endswith(TENSOR_SUFFIX)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def floating_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of the tensors that an update has deltas of."""
        return {
            name: entry.shape
            for name, entry in self.tensors.items()
            if entry.dtype in BY_NAME
            and BY_NAME[entry.dtype].floating
            and name not in self.fixed
        }


class UpdateManifest(_Manifest):
    """What an assignment delivered: deltas for `update`, only numbers for `evaluation`.

    Attributes:
        base: The version trained from, or the version evaluated.
        base_sha256: `VersionManifest.sha256` of that version as the job read it.
        tensors: What the tensor files hold; of int8 the scales, too (`codec`).
        files: What travels.
        training: How it was trained, as ``{"sharding": "fsdp"}``.
        block: Numbers that share a scale, in an update of dtype int8.
        unpacked: The tensor files, where `files` are these, packed (`packing`).
    """

    kind: Literal["update", "evaluation"]
    assignment: Word
    facility: Word
    base: Count
    base_sha256: Word | None = None
    steps: Count = 0
    samples: Count = 0
    partial: bool = False
    metrics: dict[Word, Number] = {}
    losses: dict[Word, Number] = {}
    timings: dict[Word, Seconds] = {}
    training: dict[Word, Word] = {}
    dtype: Word | None = None
    block: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    unpacked: dict[FileName, Record] = {}

    @model_validator(mode="after")
    def _files_have_their_names(self) -> Self:
        for name in self.tensor_files:
            if not name.endswith(TENSOR_SUFFIX):
                raise ValueError(f"{name!r} is no tensor file")
        packed = {name + PACKED_SUFFIX for name in self.unpacked}
        if packed and packed != {*self.files}:
            raise ValueError(f"`files` are not `unpacked` with {PACKED_SUFFIX}")
        return self

    @property
    def tensor_files(self) -> FileRecords:
        """The files that tensors are read from."""
        return self.unpacked or self.files


Kind = TypeVar("Kind", VersionManifest, UpdateManifest)


def write_manifest(directory: Path, manifest: _Manifest) -> None:
    """Write `manifest.json` into a directory, atomically."""
    write_json(directory / NAME, manifest.model_dump(mode="json", by_alias=True))


def read_version_manifest(directory: Path) -> VersionManifest:
    """Read the manifest of a version's directory.

    Raises:
        StoreError: There is none.
        IntegrityError: It is not a version's manifest.
    """
    return _read(directory, VersionManifest)


def read_update_manifest(directory: Path) -> UpdateManifest:
    """Read the manifest of an update's directory; raises as for versions."""
    return _read(directory, UpdateManifest)


def _read(directory: Path, kind: type[Kind]) -> Kind:
    path = directory / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"There is no manifest {path}.") from None
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is not text: {error}.") from None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise IntegrityError(f"{path}, {_first(error)}.") from None


def checked(kind: type[Kind], fields: dict[str, object]) -> Kind:
    """Build a manifest from plain fields.

    Raises:
        UpdateRejected: A field can't be so, as a loss that is NaN.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UpdateRejected(
            f"The {kind.__name__[:-8].lower()}'s manifest is wrong, {_first(error)}."
        ) from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if len(place) > LONGEST or not place.isprintable():
        place = ascii(place[:LONGEST])
    return f"field {place or 'root'}: {problem['msg']}"
