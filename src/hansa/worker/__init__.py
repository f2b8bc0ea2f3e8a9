"""Inside the batch job: bind a version, train, write the update."""
