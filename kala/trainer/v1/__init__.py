"""Contracts generated from protos/kala/trainer/v1; never edited."""
