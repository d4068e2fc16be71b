"""Configurations as data: no code, no class paths."""
