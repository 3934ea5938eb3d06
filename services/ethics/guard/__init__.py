"""The guard: a model elsewhere that is asked about what the classifier left open."""
