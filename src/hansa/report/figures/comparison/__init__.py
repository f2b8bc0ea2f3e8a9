"""Pictures of a comparison, one module a figure; `plates` draws them all."""
