"""Reading and writing named tensors."""
