"""Algorithms that combine parameters."""
