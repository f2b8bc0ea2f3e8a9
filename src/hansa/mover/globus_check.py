"""What can be known of the way through Globus Transfer before anything is moved."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hansa.core.errors import HansaError
from hansa.core.remarks import OK, PROBLEM, UNKNOWN, Remark
from hansa.login import standing
from hansa.mover.globus_service import Entry, Service, Spot

LINE = "line"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """Both ends of the way.

    Attributes:
        there: The facility's collection.
        mailbox: The mailbox as that collection shows it.
        here: The server's collection.
        root: A directory of this machine.
        path: The same directory as the server's collection shows it.
    """

    there: Spot
    mailbox: str
    here: Spot
    root: Path
    path: str


async def remarks(
    service: Service, ends: Ends, needed: Mapping[str, bool]
) -> list[Remark]:
    """Look at the login, both collections and two directories; nothing is changed.

    Args:
        service: Globus Transfer.
        ends: Both ends of the way.
        needed: Ids of the collections, and whether each wants a consent of its own.
    """
    found = await asyncio.to_thread(partial(standing.remarks, collections=needed))
    if any(one.state == PROBLEM for one in found):
        return found
    for spot in (ends.there, ends.here):
        told = await _collection(service, spot)
        found += told
        if any(one.state == PROBLEM for one in told):
            return found
    found += await _mailbox(service, ends)
    found += await _root(service, ends)
    return found


async def _collection(service: Service, spot: Spot) -> list[Remark]:
    try:
        data = await service.collection(spot)
    except HansaError as error:
        return [_refused(error)]
    return judged(spot, data)


def judged(spot: Spot, data: Mapping[str, Any]) -> list[Remark]:
    """Return what the service's record of a collection means for a run."""
    name = f"{data.get('display_name') or spot.collection} ({spot.name})"
    page = f"https://app.globus.org/file-manager/collections/{spot.collection}"
    if data.get("gcp_connected") is False:
        return [
            Remark(
                LINE,
                PROBLEM,
                f"Globus Connect Personal of {name} is not connected.",
                "Start it on that computer.",
            )
        ]
    if data.get("gcp_paused") is True or data.get("non_functional") is True:
        how = "paused" if data.get("gcp_paused") else "out of order"
        words = f"The collection {name} is {how}."
        return [Remark(LINE, PROBLEM, words, f"See {page}.")]
    if data.get("disable_verify") is True:
        words = f"The collection {name} does not let Globus verify checksums."
        hint = "Ask its administrator; nothing is moved without."
        return [Remark(LINE, PROBLEM, words, hint)]
    more = [
        word
        for key, word in (
            ("high_assurance", "high assurance: logins there hold for a limited time"),
            ("force_encryption", "always encrypted"),
        )
        if data.get(key) is True
    ]
    return [Remark(LINE, OK, "; ".join([f"collection {name} is there", *more]))]


async def _mailbox(service: Service, ends: Ends) -> list[Remark]:
    shown = ends.there.shown(ends.mailbox)
    try:
        found = await service.listing(ends.there, ends.mailbox)
    except HansaError as error:
        return [_refused(error)]
    if found is None:
        return [
            Remark(
                LINE,
                PROBLEM,
                f"The collection shows no mailbox at {shown}.",
                "Make it there with `mkdir -p`, or let `mover.path` be the `mailbox` "
                "of site.yaml as the collection shows it.",
            )
        ]
    words = f"the mailbox {shown} is to be seen"
    return [Remark(LINE, OK, f"{words}; whether it is writable shows when it is used")]


async def _root(service: Service, ends: Ends) -> list[Remark]:
    root = ends.root.expanduser()
    try:
        local = await asyncio.to_thread(_look, root)
    except OSError as error:
        words = f"The directory {root} can't be read: {error.strerror}."
        hint = "Let `mover.here.root` be a directory that holds the runs folder."
        return [Remark(LINE, PROBLEM, words, hint)]
    try:
        shown = await service.listing(ends.here, ends.path)
    except HansaError as error:
        return [_refused(error)]
    return [_compared(root, local, ends, shown)]


def _compared(
    root: Path,
    local: Mapping[str, Entry],
    ends: Ends,
    shown: Mapping[str, Entry] | None,
) -> Remark:
    """Tell whether a directory here is the one that the collection shows."""
    where = f"{root} here and {ends.path} of the collection {ends.here.collection}"
    hint = (
        "Let `mover.here.path` be the directory `mover.here.root` as the collection "
        "shows it."
    )
    if shown is None:
        words = f"The server's collection shows no {ends.path}."
        return Remark(LINE, PROBLEM, words, hint)
    mine = {name for name in local if not name.startswith(".")}
    theirs = {name for name in shown if not name.startswith(".")}
    # A run may write just now, so not all need be alike.
    if any(_alike(local[name], shown[name]) for name in mine & theirs):
        return Remark(LINE, OK, f"{where} are the same")
    if not mine and not theirs:
        words = f"{where}: both are empty, so nothing can be compared"
        return Remark(LINE, UNKNOWN, words, "It shows with the first version.")
    one, side = (mine, "here") if mine else (theirs, "there")
    some = ", ".join(sorted(one)[:_SHOWN])
    return Remark(
        LINE, PROBLEM, f"{where} are not the same: {some} is only {side}.", hint
    )


def _alike(mine: Entry, theirs: Entry) -> bool:
    same = mine.plain == theirs.plain
    return same and (not mine.plain or mine.bytes == theirs.bytes)


def _look(root: Path) -> dict[str, Entry]:
    with os.scandir(root) as entries:
        return {
            one.name: Entry(
                plain=one.is_file(follow_symlinks=False),
                bytes=one.stat(follow_symlinks=False).st_size,
            )
            for one in entries
        }


def _refused(error: HansaError) -> Remark:
    topic = "login" if error.code == "LOGIN" else LINE
    return Remark(topic, PROBLEM, error.message, error.hint or "")
