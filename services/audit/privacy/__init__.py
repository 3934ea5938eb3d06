"""Keeps persons' content from staying: erasure, legal holds, retention, redaction."""
