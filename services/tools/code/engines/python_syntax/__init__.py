"""Syntax rules for Python: what is wrong by what it says, whatever data goes through it."""
