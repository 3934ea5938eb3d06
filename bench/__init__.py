"""What `make bench` runs: ratios in one run against named baselines."""

import os

# Before anything here loads onnxruntime, which tells its maker of its use unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
