"""Batch queues of simulated facilities, one file a model; `make_queue` chooses."""
