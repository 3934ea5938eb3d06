"""The audit service: an append-only transparency log with receipts that anyone can verify offline."""
