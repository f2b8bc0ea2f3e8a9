"""Randomness by key: the same words always give the same numbers.

A seed is derived from names (run seed, facility, round, purpose), never drawn, so
no component disturbs another and a restart needs no saved generator.
"""

from __future__ import annotations

from hashlib import blake2b

Key = str | int


def derive_seed(*keys: Key) -> int:
    """Return a 63-bit seed for this list of keys."""
    text = "\x1f".join([f"{type(key).__name__}:{key}" for key in keys])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(*keys: Key) -> float:
    """Return a number in [0, 1) for this list of keys."""
    return (derive_seed(*keys) >> 10) / 2.0**53
