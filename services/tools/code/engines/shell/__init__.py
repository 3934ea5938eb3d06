"""Shell scripts: where words come from, where they are split, and what programs are told."""
