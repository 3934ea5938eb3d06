"""Proofs from stored tiles; the verifier reads tiles by the same code."""

from __future__ import annotations

from kala.audit.tile_nodes import HashReader, TileReader, open_tiles

__all__ = ["HashReader", "TileReader", "open_tiles"]
