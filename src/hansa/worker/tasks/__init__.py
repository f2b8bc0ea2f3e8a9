"""Tasks: a facility's data as examples, in groups and splits."""
