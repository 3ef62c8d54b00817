"""Algorithms: one a file, each makes a `Trainer`."""
