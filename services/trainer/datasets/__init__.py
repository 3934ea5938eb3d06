"""Datasets: sources are read or generated, checked, cleaned and written once, with a manifest and a card."""
