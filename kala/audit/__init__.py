"""Offline verification of KALA's transparency log: standard library and `cryptography` only, no service needed."""
