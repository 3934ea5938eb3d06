"""Which adapters may serve here: signed by the trainer, gated, in the log, made for this base, and not revoked."""
