"""The store in memory means what the store of files means, and forgets as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalar_store import ScalarStore
from tensors import folder

from hansa.core.commands import Aggregate, StateSum, Term
from hansa.core.errors import StoreError, UpdateRejected
from hansa.core.recipes import (
    LINEAR,
    PLAIN,
    Adagrad,
    Adam,
    ClippedMean,
    Krum,
    Linear,
    Median,
    Momentum,
    Optimizer,
    Plain,
    Reducer,
    TrimmedMean,
    Yogi,
)
from hansa.simulator.memory import MemoryStore
from hansa.store import Measured, Store, reader, write_update

SHAPES = {"a": (3,), "b": (2, 2)}
INITIAL = np.array([1.0, -2.0, 0.5, 4.0, 0.0, 3.0, -1.0])

REDUCERS: list[Reducer] = [
    Linear(),
    Median(),
    TrimmedMean(trim=0.2),
    TrimmedMean(trim=0.34),
    ClippedMean(norm=2.0),
    Krum(byzantine=1, keep=1),
    Krum(byzantine=0, keep=2),
]
OPTIMIZERS: list[Optimizer] = [
    Plain(),
    Momentum(lr=0.5, momentum=0.8),
    Momentum(lr=0.5, momentum=0.8, nesterov=True),
    Adagrad(beta1=0.5),
    Adam(),
    Yogi(),
]
FACTORS = st.sampled_from([0.25, 0.5, 1.0, -0.5, 2.0])


History = tuple[list[list[np.ndarray]], list[Aggregate]]


@st.composite
def histories(
    draw: st.DrawFn,
    coordinates: int,
    versions: int,
    reducers: st.SearchStrategy[Reducer],
    optimizers: st.SearchStrategy[Optimizer],
) -> History:
    """Draw some versions: the updates before each, and how it is made.

    Numbers are whole, so that sums of squares are exact and Krum's ties are ties for
    everybody.
    """
    reducer, optimizer = draw(reducers), draw(optimizers)
    least = 5 if isinstance(reducer, Krum) else 1
    numbers = st.lists(
        st.integers(-5, 5), min_size=coordinates, max_size=coordinates
    ).map(lambda found: np.array(found, float))
    came, commands = [], []
    for version in range(1, versions + 1):
        deltas = draw(st.lists(numbers, min_size=least, max_size=6))
        terms = [Term(ref=f"version/{version - 1}", coefficient=1.0)]
        sums = [Term(ref=name(version, 0), coefficient=draw(FACTORS))]
        if version > 1:
            older = draw(st.integers(0, version - 1))
            terms.append(Term(ref=f"version/{older}", coefficient=draw(FACTORS)))
            control = f"state/control/{version - 1}"
            terms.append(Term(ref=control, coefficient=draw(FACTORS)))
            sums.append(Term(ref=control, coefficient=draw(FACTORS)))
        for number in range(len(deltas)):
            terms.append(Term(ref=name(version, number), coefficient=draw(FACTORS)))
        came.append(deltas)
        commands.append(
            Aggregate(
                version=version,
                terms=tuple(terms),
                reducer=reducer,
                optimizer=optimizer,
                states=(StateSum(name="control", terms=tuple(sums)),),
            )
        )
    return came, commands


def name(version: int, number: int) -> str:
    return f"update/train-{version:04d}-f{number}-1"


def assignment(ref: str) -> str:
    return ref.removeprefix("update/")


def states_of(store: MemoryStore, command: Aggregate) -> dict[str, np.ndarray]:
    found = {}
    for state in ("control", "optimizer-first", "optimizer-second"):
        ref = f"state/{state}/{command.version}"
        try:
            value = store.state(ref)
        except StoreError:
            continue
        assert value is not None
        found[ref] = value
    return found


@given(histories(1, 3, st.sampled_from(REDUCERS), st.sampled_from(OPTIMIZERS)))
@settings(max_examples=200)
def test_each_number_is_what_the_recipes_say(history: History) -> None:
    scalar, store = ScalarStore(2.0), MemoryStore(np.array([2.0]))
    for deltas, command in zip(*history, strict=True):
        for number, delta in enumerate(deltas):
            who = assignment(name(command.version, number))
            scalar.update(who, float(delta[0]))
            store.put_update(who, delta)
        expected = scalar.aggregate(command)
        store.aggregate(command)
        assert store.newest == command.version
        made = store.version(command.version)
        assert made is not None
        assert made[0] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        found = states_of(store, command)
        mine = {ref: float(value[0]) for ref, value in found.items()}
        theirs = {
            ref: v for ref, v in scalar.values.items() if ref.startswith("state/")
        }
        here = {r: v for r, v in theirs.items() if r.endswith(f"/{command.version}")}
        assert mine == pytest.approx(here, rel=1e-12, abs=1e-12)


class Files:
    """The store of files, with the same words as the one in memory."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "run", "float32")
        self.store.import_initial(folder(root / "draft", parts(INITIAL)))

    def put_update(self, who: str, delta: np.ndarray) -> None:
        arrays = [(key, np.float32(value)) for key, value in parts(delta).items()]
        measured = Measured(assignment=who, facility="f", base=0)
        path = self.store.update_dir(who)
        write_update(path, SHAPES, arrays, measured, dtype="float32")

    def aggregate(self, command: Aggregate) -> None:
        self.store.aggregate(
            command.version,
            command.terms,
            command.reducer,
            command.optimizer,
            command.states,
        )

    def value(self, ref: str) -> np.ndarray:
        with reader(self.store.source_dir(ref)) as tensors:
            return np.concatenate([tensors.read(key).reshape(-1) for key in SHAPES])

    def refs(self) -> set[str]:
        """Return all that is there; version 0 never goes."""
        root = self.store.root
        found = {f"version/{number}" for number in self.store.versions()}
        found |= {f"update/{path.name}" for path in (root / "updates").glob("t*")}
        states = (root / "states").glob("*/*")
        return found | {f"state/{path.parent.name}/{path.name}" for path in states}


def parts(vector: np.ndarray) -> dict[str, np.ndarray]:
    return {"a": vector[:3], "b": vector[3:].reshape(2, 2)}


@pytest.mark.parametrize(("reducer", "optimizer"), [*zip(REDUCERS, cycle(OPTIMIZERS))])
@given(data=st.data())
@settings(max_examples=2)
def test_it_means_what_the_store_of_files_means(
    reducer: Reducer, optimizer: Optimizer, data: st.DataObject
) -> None:
    history = data.draw(histories(7, 2, st.just(reducer), st.just(optimizer)))
    with TemporaryDirectory() as root:
        files, store = Files(Path(root)), MemoryStore(INITIAL)
        for deltas, command in zip(*history, strict=True):
            for number, delta in enumerate(deltas):
                who = assignment(name(command.version, number))
                files.put_update(who, delta)
                store.put_update(who, delta)
            files.aggregate(command)
            store.aggregate(command)
            found = states_of(store, command)
            made = store.version(command.version)
            assert made is not None
            found[f"version/{command.version}"] = made
            for ref, value in found.items():
                # The files are fp32; adaptive steps divide by small numbers.
                np.testing.assert_allclose(
                    value, files.value(ref), rtol=1e-4, atol=1e-3, err_msg=ref
                )


def plan(version: int, *updates: str, states: Sequence[str] = ()) -> Aggregate:
    terms = [Term(ref=f"version/{version - 1}", coefficient=1.0)]
    terms += [Term(ref=ref, coefficient=0.5) for ref in updates]
    sums = tuple(StateSum(name=one, terms=tuple(terms[1:])) for one in states)
    return Aggregate(version=version, terms=tuple(terms), states=sums)


@given(st.data())
@settings(max_examples=10)
def test_it_forgets_what_the_store_of_files_forgets(data: st.DataObject) -> None:
    some = st.lists(st.integers(0, 1), min_size=2, max_size=2)
    with TemporaryDirectory() as root:
        files, store = Files(Path(root)), MemoryStore(INITIAL)
        updates: list[str] = []
        for version in range(1, 5):
            used = []
            for number, is_used in enumerate(data.draw(some, "used")):
                ref = name(version, number)
                files.put_update(assignment(ref), np.ones(7))
                store.put_update(assignment(ref), np.ones(7))
                used += [ref] if is_used else []
                updates.append(assignment(ref))
            states = ["s"] if used and data.draw(st.booleans(), "state") else []
            command = plan(version, *used, states=states)
            files.aggregate(command)
            store.aggregate(command)
            # Only what is there can be needed; what is spent may be gone.
            there = sorted(files.refs())
            numbers = st.sampled_from(files.store.versions())
            needed = data.draw(st.sets(numbers), "needed")
            held = data.draw(st.sets(st.sampled_from(there)), "held")
            spent = data.draw(st.sets(st.sampled_from(updates)), "spent")
            newest = data.draw(st.integers(1, 2), "newest")
            files.store.collect_garbage(newest, needed, held, spent)
            store.collect(needed, held, spent, newest)
            assert set(store.references()) == files.refs()


def test_it_does_not_grow_with_the_rounds() -> None:
    store, most = MemoryStore(INITIAL), 0
    spent: set[str] = set()
    for version in range(1, 300):
        updates = [name(version, number) for number in range(3)]
        for ref in updates:
            store.put_update(assignment(ref), np.ones(7))
        store.aggregate(plan(version, *updates, states=["memory"]))
        spent |= {assignment(ref) for ref in updates}
        held = {f"version/{version}", f"state/memory/{version}"}
        store.collect({version}, held, spent)
        most = max(most, len(store.references()))
    # Versions 0 and 299, its state, and the three updates that it was made of.
    assert most == 6


def test_the_hash_is_that_of_the_bytes() -> None:
    store = MemoryStore(INITIAL)
    store.put_update(assignment(name(1, 0)), np.ones(7))
    found = store.aggregate(plan(1, name(1, 0)))
    assert found == sha256((INITIAL + 0.5).tobytes()).hexdigest() == store.sha256(1)
    assert store.sha256(0) == sha256(INITIAL.tobytes()).hexdigest()


def test_what_it_took_in_stays_as_it_was() -> None:
    """Adam squares its delta in place; that must not be the update itself."""
    store, delta = MemoryStore(INITIAL), np.full(7, 3.0)
    base = INITIAL.copy()
    store.put_update(assignment(name(1, 0)), delta)
    command = plan(1, name(1, 0))
    whole = replace(command.terms[1], coefficient=1.0)
    terms = (command.terms[0], whole)
    store.aggregate(replace(command, terms=terms, optimizer=Adam()))
    assert (delta == 3.0).all()
    assert (base == INITIAL).all()


def test_an_empty_reference_of_a_state_is_zeros() -> None:
    assert (MemoryStore(INITIAL).state("") == np.zeros(7)).all()


TWO = (name(1, 0), name(1, 1))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (plan(1, name(9, 9)), "train-0009-f9-1"),
        (plan(3), "version/2"),
        (Aggregate(version=1, terms=()), "No term of version 1 is a version"),
        (replace(plan(1), reducer=Median()), "no update"),
        (replace(plan(1, *TWO), reducer=TrimmedMean(trim=0.5)), "leaves nothing"),
        (replace(plan(1, name(1, 0)), reducer=Krum()), "needs 3 updates; there are 1"),
    ],
)
def test_sums_that_cannot_be_are_refused(command: Aggregate, words: str) -> None:
    store = MemoryStore(INITIAL)
    for ref in TWO:
        store.put_update(assignment(ref), np.ones(7))
    with pytest.raises(StoreError, match=words):
        store.aggregate(command)
    assert store.newest == 0
    assert set(store.references()) == {"version/0", *TWO}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("optimizer", [PLAIN, Momentum()])
def test_a_version_that_fp32_cannot_hold_is_refused(
    number: float, optimizer: Optimizer
) -> None:
    store = MemoryStore(INITIAL)
    store.put_update(assignment(name(1, 0)), np.full(7, number))
    command = replace(plan(1, name(1, 0)), optimizer=optimizer, reducer=LINEAR)
    with pytest.raises(UpdateRejected, match="not finite"):
        store.aggregate(command)
    assert store.newest == 0


def test_without_training_it_counts_versions_only() -> None:
    store = MemoryStore(None)
    store.put_update(assignment(name(1, 0)), None)
    assert store.aggregate(plan(1, name(1, 0))) == store.sha256(1) == ""
    assert store.newest == 1
    assert store.version(1) is None
    assert store.state("state/control/1") is None
    store.collect({1}, set(), set())
    assert store.references() == ()
