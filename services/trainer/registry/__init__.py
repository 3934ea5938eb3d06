"""What was trained, what may serve, what may no longer, and where its files lie."""
