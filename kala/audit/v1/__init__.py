"""Contracts generated from protos/kala/audit/v1; never edited."""
