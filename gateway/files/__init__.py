"""`/v1/files`: what clients upload and what batches write, sealed by person and bounded by tenant."""
