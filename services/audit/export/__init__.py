"""Entries in other people's formats: exports with proof, and sinks that follow the log."""
