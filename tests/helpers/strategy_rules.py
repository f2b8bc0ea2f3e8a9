"""What each strategy promises of its sums, and which options it is tried with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

from hypothesis import strategies as st

from hansa.core.commands import Aggregate, Term
from hansa.core.events import UpdateArrived

NAMES = ("a", "b", "c")
STEPS = 8
"""Steps of an order that names none."""

Options = dict[str, Any]
Updates = Mapping[str, UpdateArrived]
Check = Callable[[Aggregate, Options, Updates], None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Promises of one strategy.

    Attributes:
        options: Draws its keys.
        check: Looks at a sum, given the options and all updates by their reference.
        remembers: Whether it may use an update in more than one version.
        several: Whether a version may have several updates of one facility.
    """

    options: st.SearchStrategy[Options]
    check: Check
    remembers: bool = False
    several: bool = False


def split(command: Aggregate) -> tuple[list[Term], list[Term]]:
    """Return the terms that are versions, and those that are updates."""
    versions = [term for term in command.terms if term.ref.startswith("version/")]
    updates = [term for term in command.terms if term.ref.startswith("update/")]
    assert len(versions) + len(updates) == len(command.terms)
    return versions, updates


def total(terms: list[Term]) -> float:
    return fsum(term.coefficient for term in terms)


def near(value: float, target: float) -> bool:
    return abs(value - target) < 1e-9


def own(command: Aggregate, updates: Updates) -> list[tuple[float, UpdateArrived]]:
    """Return the coefficients of the sum's updates, each with its update."""
    return [(term.coefficient, updates[term.ref]) for term in split(command)[1]]


# Promises of all.


def whole(command: Aggregate, updates: Updates, options: Options) -> None:
    """The versions' coefficients sum to 1; nothing is staler than the bound."""
    versions, _ = split(command)
    assert near(total(versions), 1.0)
    bound = options.get("max_staleness")
    for _, update in own(command, updates):
        staleness = command.version - 1 - update.base
        assert bound is None or staleness <= bound


def from_newest(command: Aggregate) -> None:
    """The base is the newest version, whole, and no other version is in the sum."""
    versions, _ = split(command)
    assert versions == [Term(ref=f"version/{command.version - 1}", coefficient=1.0)]


# Synchronous rounds.


def mean(command: Aggregate, options: Options, updates: Updates) -> None:
    """The newest version and a mean of updates: positive weights that sum to 1."""
    from_newest(command)
    _, terms = split(command)
    assert len(terms) >= options.get("quorum", 1)
    assert all(term.coefficient > 0 for term in terms)
    assert near(total(terms), 1.0)


def step(kind: str, **defaults: float) -> Check:
    """A mean, along which the server's optimizer steps."""

    def check(command: Aggregate, options: Options, updates: Updates) -> None:
        mean(command, options, updates)
        assert command.optimizer.name == kind
        for name, default in defaults.items():
            assert getattr(command.optimizer, name) == options.get(name, default)

    return check


def half(command: Aggregate, options: Options, updates: Updates) -> None:
    mean(command, {"quorum": 2, **options}, updates)


def normalised(command: Aggregate, options: Options, updates: Updates) -> None:
    """With c_k = tau_eff p_k / a_k: sum c_k a_k = tau_eff = sum p_k a_k, a_k steps."""
    from_newest(command)
    pairs = own(command, updates)
    if options.get("momentum"):
        assert all(coefficient > 0 for coefficient, _ in pairs)
        return
    sizes = [u.samples if options.get("weights") == "samples" else 1 for _, u in pairs]
    effective = fsum(n * u.steps for n, (_, u) in zip(sizes, pairs, strict=True))
    assert near(fsum(c * u.steps for c, u in pairs), effective / sum(sizes))


def controlled(command: Aggregate, options: Options, updates: Updates) -> None:
    """SCAFFOLD: the mean times lr; states weighed by how many came, s of N.

    Of ``c+`` the updates have -1 / (N L_k) each, so their sum times L_k is -s/N; in
    ``c+ + (c - c_k) + d_k / L_k`` the facility's own has 1 more.
    """
    from_newest(command)
    pairs = own(command, updates)
    assert near(fsum(c for c, _ in pairs), options.get("lr", 1.0))
    came = {u.facility for _, u in pairs}
    share, base = len(came) / len(NAMES), command.version - 1
    sums = {state.name: state.terms for state in command.states}
    assert set(sums) == {"control", *(f"correction-{name}" for name in NAMES)}
    for name, terms in sums.items():
        there = {t.ref: t.coefficient for t in terms if t.ref.startswith("state/")}
        rate = fsum(
            t.coefficient * updates[t.ref].metrics["lr_sum"]
            for t in terms
            if t.ref.startswith("update/")
        )
        facility = name.removeprefix("correction-")
        assert near(rate, (facility in came) - share)
        expected = {f"state/control/{base}": -share if facility in NAMES else 1 - share}
        if facility in came:
            expected[f"state/control/{base}"] = 1 - share
        if facility in NAMES:
            expected[f"state/{name}/{base}"] = 1.0
        if base == 0:
            expected = {}  # states of version 0 are zero and in no sum
        assert set(there) == {ref for ref, factor in expected.items() if factor}
        assert all(near(there[ref], expected[ref]) for ref in there)


def remembered(command: Aggregate, options: Options, updates: Updates) -> None:
    """MIFA: every facility that has ever delivered counts lr / N."""
    from_newest(command)
    each = options.get("lr", 1.0) / len(NAMES)
    assert all(near(coefficient, each) for coefficient, _ in own(command, updates))


def reduced(command: Aggregate, options: Options, updates: Updates) -> None:
    """FedVARP: new ones lr / s; old ones of those that came lr (1/N - 1/s), else lr/N.

    So the new ones sum to lr, and no facility has more than one of each kind.
    """
    from_newest(command)
    lr, pairs = options.get("lr", 1.0), own(command, updates)
    latest = max(u.at for _, u in pairs)
    assert latest is not None
    came = len({u.facility for c, u in pairs if c > lr / len(NAMES) + 1e-12}) or 3
    kinds = {lr / came: "new", lr / len(NAMES): "old"}
    kinds[lr * (1 / len(NAMES) - 1 / came)] = "replaced"
    for coefficient, _ in pairs:
        assert any(near(coefficient, kind) for kind in kinds)
    fresh = [c for c, _ in pairs if near(c, lr / came)]
    if came < len(NAMES):
        assert near(fsum(fresh), lr)


# Asynchronous work.


def mixed_in(command: Aggregate, options: Options, updates: Updates) -> None:
    """FedAsync: ``(1 - a) x + a (x_base + d)`` with ``a = alpha s(tau)``."""
    ((share, update),) = own(command, updates)
    assert 0 < share <= options.get("alpha", 0.6)
    versions = {term.ref: term.coefficient for term in split(command)[0]}
    base, newest = f"version/{update.base}", f"version/{command.version - 1}"
    expected = {newest: 1.0} if base == newest else {newest: 1 - share, base: share}
    expected = {ref: factor for ref, factor in expected.items() if factor}
    assert versions.keys() == expected.keys()
    assert all(near(versions[ref], expected[ref]) for ref in expected)
    if "compat" not in options and options.get("staleness") == "constant":
        assert share == options.get("alpha", 0.6)


def buffered(command: Aggregate, options: Options, updates: Updates) -> None:
    """FedBuff: at most K updates, each at most lr / K."""
    pairs, k = own(command, updates), options.get("k", 2)
    assert 1 <= len(pairs) <= k
    most = options.get("lr", 1.0) / k
    if "compat" in options:
        most = 0.9 if options.get("weights") == "samples" else 0.9 / len(NAMES)
    else:
        from_newest(command)
    assert all(0 < coefficient <= most + 1e-12 for coefficient, _ in pairs)


def grouped(command: Aggregate, options: Options, updates: Updates) -> None:
    """FedCompass: each at most alpha / N."""
    if "compat" not in options:
        from_newest(command)
    most = options.get("alpha", 0.9) / len(NAMES)
    assert all(0 < coefficient <= most for coefficient, _ in own(command, updates))


def tidal(command: Aggregate, options: Options, updates: Updates) -> None:
    """Tide: shares of one whole, each of a local model: it brings its base along.

    A gradient is minus the update over the sum of its rates.
    """
    pairs = own(command, updates)
    assert all(share > 0 for share, _ in pairs)
    assert fsum(share for share, _ in pairs) <= 1 + 1e-9
    newest = f"version/{command.version - 1}"
    brought: dict[str, float] = {}
    for share, update in pairs:
        base = f"version/{update.base}"
        brought[base] = brought.get(base, 0.0) + share
    for term in split(command)[0]:
        if term.ref != newest:
            assert near(term.coefficient, brought[term.ref])
    assert bool(command.states) == options.get("control", True)
    for state in command.states:
        if state.name.startswith("gradient-"):
            (rate,) = [
                term.coefficient * updates[term.ref].metrics["lr_sum"]
                for term in state.terms
                if term.ref.startswith("update/")
            ]
            assert near(rate, -1.0)


def shared(command: Aggregate, options: Options, updates: Updates) -> None:
    """FedQueue: shares that sum to 1."""
    if "compat" not in options:
        from_newest(command)
    pairs = own(command, updates)
    assert all(coefficient > 0 for coefficient, _ in pairs)
    assert near(fsum(coefficient for coefficient, _ in pairs), 1.0)


# Options.


def keys(**drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Options]:
    return st.fixed_dictionaries({}, optional=drawn)


ROUNDS = {"quorum": st.integers(1, 3), "deadline": st.just(60.0)}
WEIGHTS = {"weights": st.sampled_from(["samples", "equal"])}
LR = {"lr": st.sampled_from([0.5, 1.0])}
REDUCERS = st.sampled_from(
    ["median", "clipped_mean", {"name": "clipped_mean", "norm": 2}]
)
MEAN = keys(**ROUNDS, **WEIGHTS, reducer=REDUCERS) | st.sampled_from(
    [
        {"quorum": 3, "deadline": 60.0, "reducer": "krum"},
        {"quorum": 2, "reducer": {"name": "trimmed_mean", "trim": 0.34}},
    ]
)
STEPPING = keys(**ROUNDS, **WEIGHTS, **LR)
ARRIVALS = {
    "max_staleness": st.integers(0, 2),
    "retry": st.just(10.0),
    "patience": st.sampled_from([50.0, 3600.0]),
}
DISCOUNT = {"staleness": st.sampled_from(["constant", "polynomial", "hinge"])}
COMPAT = {"compat": st.just("appfl")}


def as_appfl(**drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Options]:
    return st.fixed_dictionaries(COMPAT, optional={**ARRIVALS, **WEIGHTS, **drawn})


ADAPTIVE = {"lr": 0.1, "tau": 1e-3}
RULES: dict[str, Rules] = {
    "fedavg": Rules(options=MEAN, check=mean),
    "fedprox": Rules(options=keys(**ROUNDS, mu=st.sampled_from([0, 0.1])), check=mean),
    "fedavgm": Rules(options=STEPPING, check=step("momentum", lr=1.0, momentum=0.9)),
    "fedadagrad": Rules(options=STEPPING, check=step("adagrad", **ADAPTIVE)),
    "fedadam": Rules(options=STEPPING, check=step("adam", **ADAPTIVE)),
    "fedyogi": Rules(options=STEPPING, check=step("yogi", **ADAPTIVE)),
    "diloco": Rules(options=STEPPING, check=step("momentum", lr=0.7, momentum=0.9)),
    "fednova": Rules(
        options=keys(**ROUNDS, **WEIGHTS, momentum=st.just(0.5)), check=normalised
    ),
    "scaffold": Rules(options=keys(**ROUNDS, **LR), check=controlled),
    "mifa": Rules(
        options=keys(**ROUNDS, **LR, wait_first=st.booleans()),
        check=remembered,
        remembers=True,
    ),
    "fedvarp": Rules(
        options=keys(**ROUNDS, **LR), check=reduced, remembers=True, several=True
    ),
    "semisync": Rules(
        options=keys(
            **ROUNDS,
            **WEIGHTS,
            grace=st.sampled_from([0.0, 30.0, "adaptive"]),
            max_staleness=st.integers(0, 2),
        ),
        check=half,
    ),
    "fedasync": Rules(
        options=keys(**ARRIVALS, **DISCOUNT) | as_appfl(),
        check=mixed_in,
    ),
    "fedbuff": Rules(
        options=keys(**ARRIVALS, **DISCOUNT, **LR, k=st.integers(1, 3))
        | as_appfl(k=st.integers(1, 3)),
        check=buffered,
        several=True,
    ),
    "fedcompass": Rules(
        options=keys(
            **ARRIVALS,
            **DISCOUNT,
            **COMPAT,
            min_steps=st.integers(1, 5),
            queue_aware=st.booleans(),
        ),
        check=grouped,
        several=True,
    ),
    "tide": Rules(
        options=keys(**ARRIVALS, control=st.booleans()),
        check=tidal,
    ),
    "fedqueue": Rules(
        options=keys(
            **ARRIVALS,
            **COMPAT,
            **WEIGHTS,
            t_sync=st.sampled_from([100.0, 3600.0]),
            min_steps=st.integers(1, 5),
            staleness=st.sampled_from(["constant", "harmonic", "exponential"]),
        ),
        check=shared,
        several=True,
    ),
}
