"""Isolation by bubblewrap: the default on a machine of one's own."""
