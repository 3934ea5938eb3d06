"""Plain functions for programs that were written against a model server: each is a client of the guarded pipeline."""
