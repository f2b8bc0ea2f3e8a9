"""The configuration of a Globus Compute endpoint that lets in only Hansa."""
