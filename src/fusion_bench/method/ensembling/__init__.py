"""Algorithms that combine outputs."""
