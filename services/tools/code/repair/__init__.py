"""Safe rewrites of common findings in Python, and the proof that they hold."""
