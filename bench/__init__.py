"""What `make bench` runs: ratios in one run against named baselines."""
