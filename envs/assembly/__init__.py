"""Assembly: parts that fit, and the tasks made of them."""
