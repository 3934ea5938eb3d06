"""Train the embedded classifier of the ethics service: `python -m scripts.classifier --help`."""
