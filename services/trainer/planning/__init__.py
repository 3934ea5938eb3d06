"""Says what a training job would do before it is started: its spec made whole, its memory, its problems."""
