"""One module per outside model server, and the model in process."""
