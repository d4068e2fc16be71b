"""Configurations of mergekit: its YAML read, translated into methods of this package, run."""
