"""Batch schedulers, sans I/O: render a script, name a command, read its output."""
