"""Contracts generated from protos/kala/tools/v1; never edited."""
