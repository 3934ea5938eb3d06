"""Training on a Ray cluster: the entry of a job, its workers, and a Ray of its own where no cluster is configured."""
