"""Train the embedded classifier of the ethics service: `python -m scripts.classifier --help`."""

import os

# Before anything here loads onnxruntime, which tells its maker of its use unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
