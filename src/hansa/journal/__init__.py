"""The truth of a run: an append-only log of events with one writer."""

from hansa.journal.journal import Journal, read
from hansa.journal.lease import Holder, Lease, holder
from hansa.journal.line import Record

__all__ = ["Holder", "Journal", "Lease", "Record", "holder", "read"]
