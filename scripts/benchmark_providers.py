"""Benchmark the providers of the suite that runs here: `kala bench providers`, with the same options."""

from __future__ import annotations

import sys

from kala.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "providers", *sys.argv[1:]]))
