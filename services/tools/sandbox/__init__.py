"""What keeps a run inside: isolation tiers, the launcher that owns every process, and the tests that they hold."""
