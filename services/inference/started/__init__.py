"""Model servers that this service starts, watches and stops itself."""
