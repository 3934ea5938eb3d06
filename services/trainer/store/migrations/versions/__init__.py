"""The steps that bring the trainer's database from release to release."""
