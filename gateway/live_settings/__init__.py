"""Settings that change while the suite runs: kept in the gateway's database, told to every replica of inference."""
