"""Attacks that a tier must hold before anything else may run in it."""
