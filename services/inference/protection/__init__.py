"""Keeps a failing or full backend from harming requests, and finds out when it is well again."""
