"""The digest is that of every list of commands, whenever it is asked for."""

from __future__ import annotations

import json
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from hansa.coordinator.digest import Digest
from hansa.core.codec import to_json
from hansa.core.commands import Aggregate, Assign, Command, Term, Withdraw, WorkOrder

COMMANDS: list[Command] = [
    Assign(
        facility="a",
        order=WorkOrder(assignment="train-0001-a-1", kind="train", round=1),
    ),
    Withdraw(facility="a", assignment="train-0001-a-1", reason="the run ends"),
    Aggregate(version=1, terms=(Term(ref="version/0", coefficient=1.0),)),
]


@given(st.lists(st.tuples(st.lists(st.sampled_from(COMMANDS)), st.booleans())))
def test_it_does_not_matter_when_it_is_read(
    given: list[tuple[list[Command], bool]],
) -> None:
    digest, by_hand = Digest(), ""
    for commands, read in given:
        digest.extend(commands)
        if commands:
            text = json.dumps([to_json(command) for command in commands])
            by_hand = sha256((by_hand + text).encode()).hexdigest()[:16]
        if read:
            assert digest.text == by_hand
    assert digest.text == by_hand
    assert digest.text == by_hand


def test_a_list_that_is_changed_later_counts_as_it_was() -> None:
    one, other = Digest(), Digest()
    commands = COMMANDS[:1]
    one.extend(commands)
    other.extend(commands)
    assert one.text
    commands.append(COMMANDS[1])
    assert other.text == one.text
