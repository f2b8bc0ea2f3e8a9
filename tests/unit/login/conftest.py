import pytest
from globus_auth import CLIENT, running

from hansa.login import flow
from hansa.login.scopes import Wanted


@pytest.fixture
def auth(monkeypatch, tmp_path):
    with running(monkeypatch, tmp_path / "globus") as service:
        yield service


@pytest.fixture
def log_in(auth):
    """Log the person in, for Transfer, Compute and some collections."""

    def do(*collections, session=(), **wanted):
        asked = Wanted(collections=collections, **wanted)
        flow.log_in(CLIENT, asked, flow.Session.parse(session), auth.browse)

    return do
