"""Workspaces, files and artifacts: what a run leaves is never trusted to be where, or what, it says."""
