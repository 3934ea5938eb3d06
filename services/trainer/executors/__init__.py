"""Where work runs: a process beside the service, or a Ray cluster."""
