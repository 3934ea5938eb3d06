"""What the log shows to the world: checkpoints, tiles, and the cosignatures of its witnesses."""
