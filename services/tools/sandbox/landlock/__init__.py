"""The weakest tier: one process tree that Landlock, seccomp and limits hold, for places that allow no namespaces."""
