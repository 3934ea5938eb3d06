"""The tools service: a sandbox that holds, and code that is checked before it runs."""
