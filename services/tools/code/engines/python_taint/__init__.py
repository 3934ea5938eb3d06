"""Taint rules for Python: from where data comes in to where it does harm."""
