"""Adapters and their merges in layouts that other software reads, each compared with what was trained."""
