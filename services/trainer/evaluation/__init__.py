"""Evaluation gates: what a candidate must show before it may serve, who counts it, and the result that the log keeps."""
