"""The GPT-NeoX model in this process: its files, its text pieces and its generation."""
