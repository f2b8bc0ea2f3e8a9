"""How a model is spread over the ranks of a job: one file a back end."""
