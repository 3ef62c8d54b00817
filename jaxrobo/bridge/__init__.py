"""Adapters between jaxrobo and other systems, each in a module of its own with its dependencies."""
