"""Pure functions on tensors; the only door to torch for the methods."""
