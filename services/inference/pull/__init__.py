"""Gets a model's files from a hub of the Hugging Face kind: chosen, bounded, held against their checksums, then shelved."""
