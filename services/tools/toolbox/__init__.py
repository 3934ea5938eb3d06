"""The tools that a model may call: what they are, what a call of them asks for, and what it gets back."""
