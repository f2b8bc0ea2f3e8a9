"""Fakes and failure scripts, for our own tests and for authors of plug-ins."""
