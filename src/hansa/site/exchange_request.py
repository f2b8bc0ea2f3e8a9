"""What a server may ask for about a bucket: to fetch from it, or to deliver into it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hansa.core.files import FileRecord, FileRecords
from hansa.mover.s3_directory import MOST, URLS
from hansa.site.order import Message, RunId

Origin = Annotated[
    str, Field(pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$", max_length=300)
]
"""Scheme, host and port. No address of a request leads elsewhere."""
_Target = Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=8192)]
_Number = Annotated[int, Field(ge=0, lt=MOST)]
_Word = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]


class Promise(Message):
    """Size in bytes and sha256 (hex) of a file."""

    bytes: Annotated[int, Field(ge=0, le=1 << 53)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Reach(Message):
    """May a host be contacted from here, and does it answer?"""

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["reach"]
    origin: Origin


class Exchange(Message):
    """Bring a directory of the mailbox from, or to, a bucket; or say how far it is.

    A process of its own does it, which this request starts or supplies with URLs.

    Attributes:
        op: ``fetch`` brings it into the mailbox, ``deliver`` out of it.
        place: The directory in the run's mailbox, as ``versions/3``.
        ticket: One try: how it ended is told under this word again and again. Under
            another one what has ended is begun anew.
        origin: Scheme, host and port of the service.
        part_bytes: Size of one object.
        files: All its files, the manifest among them; without it in a dry run.
        urls: Path and query of signed URLs, by number of the piece (`s3_directory`).
            They are secrets, and left out when the message is shown.
        valid: Seconds for which they are good.
        kept: Pieces that the server has already.
        dry_run: Only say whether it may be done, and which manifest is there.
    """

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["fetch", "deliver"]
    run: RunId
    place: Annotated[str, Field(min_length=1, max_length=300)]
    ticket: _Word
    origin: Origin
    part_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)]
    files: Annotated[dict[str, Promise], Field(max_length=MOST)]
    urls: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,5}$")], _Target],
        Field(max_length=URLS, repr=False),
    ] = Field(default_factory=dict, repr=False)
    valid: Annotated[float, Field(gt=0, le=604_800)] = 60.0
    kept: Annotated[tuple[_Number, ...], Field(max_length=MOST)] = ()
    dry_run: bool = False

    def records(self) -> FileRecords:
        """Return what is promised of the files."""
        return {
            name: FileRecord(bytes=one.bytes, sha256=one.sha256)
            for name, one in self.files.items()
        }
