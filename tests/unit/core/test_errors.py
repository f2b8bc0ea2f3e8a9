"""Errors cross processes and facilities without losing their meaning."""

import pickle

import pytest

from hansa.core import errors
from hansa.core.errors import HansaError, PolicyError, from_json


def every_class(root: type[HansaError]) -> list[type[HansaError]]:
    found = [root]
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found += every_class(child)
    return found


@pytest.mark.parametrize("kind", every_class(HansaError), ids=lambda k: k.__name__)
@pytest.mark.parametrize("transient", [True, False])
def test_json_round_trip(kind: type[HansaError], transient: bool) -> None:
    error = kind("What failed.", hint="Do this.", transient=transient)
    again = from_json(error.to_json())
    assert type(again) is kind
    assert again.to_json() == error.to_json()
    assert str(again) == "What failed."


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in every_class(HansaError)]
    assert len(codes) == len(set(codes))


def test_an_unknown_code_becomes_the_root() -> None:
    error = from_json({"code": "FROM_THE_FUTURE", "message": "x", "transient": True})
    assert type(error) is HansaError
    assert error.transient


def test_errors_survive_pickling_between_processes() -> None:
    error = pickle.loads(pickle.dumps(PolicyError("No.", hint="Ask.")))  # noqa: S301
    assert isinstance(error, PolicyError)
    assert (error.message, error.hint) == ("No.", "Ask.")


def test_of_keeps_words_under_another_class() -> None:
    error = errors.TransferError.of(errors.StorageFull("Full.", hint="Free space."))
    assert isinstance(error, errors.TransferError)
    assert (error.message, error.hint, error.transient) == (
        "Full.",
        "Free space.",
        False,
    )
