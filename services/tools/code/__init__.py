"""Code security: what is wrong with a source file, and by which weakness class."""
