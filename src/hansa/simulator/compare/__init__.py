"""Strategies against each other: which runs, over all cores, and what they say.

`study` says which runs there are, `execute` carries them out, `tuning` chooses each
strategy's grid point, `statistics` makes figures of them, `tables` words; `contest`
puts it together.
"""
