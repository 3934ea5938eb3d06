"""Training of the embedded demo model: text from templates, a tokenizer, a tiny GPT-NeoX, and its report."""
