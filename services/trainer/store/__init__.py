"""The trainer's resources in SQL."""
