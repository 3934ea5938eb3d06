"""The training loop: rows to tokens to steps to a LoRA adapter or a new base, resumable to the bit on a CPU.

torch, transformers and peft are imported here only inside functions: the service may read names and types of this package.
"""
