"""The facility's side: one RPC, and the policy that the facility owns."""
