"""Training jobs: accepted, queued, run, watched, cancelled and taken up again."""
