"""The migrations of the log, run by `services.audit.migrate`."""
