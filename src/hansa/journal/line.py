"""One line of the journal: ``{"crc":"1c291ca3","seq":7,"digest":"…","event":{…}}``.

The crc32 covers the line's JSON text without the crc member, so it is checked
before anything is parsed and any flipped bit shows.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass

from hansa.core import codec
from hansa.core.errors import JournalCorrupt
from hansa.core.events import Event

_HEAD = b'{"crc":"%08x",'
_HEAD_LENGTH = len(_HEAD % 0)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Record:
    """One journaled event.

    Attributes:
        seq: Number of the record, from 1; equals its line number.
        digest: Opaque word of the caller (a rolling hash of the commands so far).
        event: What happened.
    """

    seq: int
    digest: str
    event: Event


def encode(record: Record) -> bytes:
    """Return the whole line, newline included; pure ASCII."""
    event = codec.to_json(record.event)
    fields = {"seq": record.seq, "digest": record.digest, "event": event}
    try:
        text = _ENCODER.encode(fields)
    except ValueError:  # JSON lacks a number that is in it
        text = _ENCODER.encode({**fields, "event": _plain(event)})
    body = text.encode("ascii")
    return _HEAD % zlib.crc32(body) + body[1:] + b"\n"


def is_whole(line: bytes) -> bool:
    """Tell whether a line ends in a newline and has the crc that it names."""
    body = b"{" + line[_HEAD_LENGTH:-1]
    return line.endswith(b"\n") and line.startswith(_HEAD % zlib.crc32(body))


def decode(line: bytes) -> Record:
    """Return the record of a line that `is_whole`.

    Raises:
        JournalCorrupt: Its members are not those of a record.
        JournalTooNew: A newer Hansa wrote it.
    """
    try:
        fields = json.loads(line)
        seq, digest, event = fields["seq"], fields["digest"], fields["event"]
    except (ValueError, KeyError) as error:
        raise JournalCorrupt(f"The record can't be read: {error!r}.") from None
    if not (isinstance(seq, int) and isinstance(digest, str) and type(event) is dict):
        raise JournalCorrupt("The record's members have other types than a record's.")
    return Record(seq, digest, codec.event_from_json(event))


def _plain(data: object) -> object:
    """Replace numbers that JSON lacks by words that read back as the same number."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list) else data
