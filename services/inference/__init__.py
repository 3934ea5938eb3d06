"""Routes guarded generation to local model servers and to the Pythia model in process."""
