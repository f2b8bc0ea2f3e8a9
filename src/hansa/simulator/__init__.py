"""Federations in virtual time: the same coordinator, strategies and journal.

`hansa.simulator.heap` is the clock, `runtime` carries commands out on it, `facility`
is a facility with a queue (`queues`), a machine and a line; `training` stands for the
training. `scenario` puts them together from a federation file.
"""
