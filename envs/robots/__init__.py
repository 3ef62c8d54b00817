"""Robots: MJCF with primitive collision geometry, a loader, and constants."""
