"""jaxrobo: robot learning in JAX."""
