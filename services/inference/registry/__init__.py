"""Which backends there are, and what was last seen of each."""
