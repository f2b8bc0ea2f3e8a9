"""Jobs of others: workload files of batch systems, read and drawn."""
