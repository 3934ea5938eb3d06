"""Contracts generated from protos/kala/ethics/v1; never edited."""
