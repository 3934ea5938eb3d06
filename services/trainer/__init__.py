"""The trainer: datasets, training jobs, evaluation gates, signed adapters. No module of the service imports torch or ray."""
