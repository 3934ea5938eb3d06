"""Contracts generated from protos/kala/gateway/v1; never edited."""
