"""The embedded classifier: a small encoder whose signed weights say how a text stands to the laws."""
