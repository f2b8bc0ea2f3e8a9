"""Federated learning algorithms as pure state machines; one file an algorithm."""
