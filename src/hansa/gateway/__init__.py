"""The control plane: one request, one reply, to a facility's site agent."""
