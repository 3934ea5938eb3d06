"""KALA's services: one folder, one process, one image each; they meet only over their contracts."""
