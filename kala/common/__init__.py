"""Contracts generated from protos/kala/common/v1; never edited."""
