"""Experiments: scripts that run from a checkout."""
