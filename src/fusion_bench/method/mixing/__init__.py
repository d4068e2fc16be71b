"""Algorithms that recombine parts."""
