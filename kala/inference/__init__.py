"""Contracts generated from protos/kala/inference/v1; never edited."""
