"""Callers that an identity provider vouches for: signed tokens in place of API keys."""
