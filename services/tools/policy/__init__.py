"""What may be done at all, what a person must agree to first, and which shell commands are known to be what they seem."""
