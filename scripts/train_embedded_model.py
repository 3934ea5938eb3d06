"""Trains the embedded demo model: `python -m scripts.train_embedded_model [--out DIR] [--steps N] [--seed N]`."""

from __future__ import annotations

import sys

from scripts.embedded.pipeline import run

if __name__ == "__main__":
    run(sys.argv[1:], lambda line: print(line, flush=True))
