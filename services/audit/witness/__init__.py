"""A witness: cosigns the checkpoints of logs that only ever grew (c2sp.org/tlog-witness). Runs apart from the logs."""
