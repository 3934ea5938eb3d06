"""KALA: a self-hosted LLM platform that can prove what it did. This package is what its users import."""
