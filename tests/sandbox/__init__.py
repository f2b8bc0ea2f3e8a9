"""Globus without the cloud, on this machine; see README.md."""
