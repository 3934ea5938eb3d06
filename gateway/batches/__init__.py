"""`/v1/files` and `/v1/batches`: uploaded requests, carried out by a bounded worker, their answers as files."""

from gateway.batches import tables as tables
